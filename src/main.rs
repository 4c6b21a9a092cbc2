//! The command line of vitag.

fn main() -> std::process::ExitCode {
    #[cfg(feature = "failpoints")]
    let _scenario = fail::FailScenario::setup();
    vitag::cli::main()
}
