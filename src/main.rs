//! The command line of vitag.

#[cfg(feature = "failpoints")]
mod faults;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = faults::set_up();
    vitag::cli::main()
}
