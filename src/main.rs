//! The command line of vitag.

fn main() -> std::process::ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = vitag::fault::set_up();
    vitag::cli::main()
}
