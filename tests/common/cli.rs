//! The binary as a process: arguments and standard input in, outputs and exit code out.

#![allow(dead_code, reason = "no test uses all of it")]

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Variables that would change what a run does, beside the settings themselves.
const MEDDLING: [&str; 2] = ["VITAG_CONFIG", "NO_COLOR"];

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary with `arguments`, in the root of the repository, its settings untouched from outside.
pub(crate) fn vitag<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vitag"));
    command.args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    let meddles = |name: &str| name.starts_with("VITAG__") || MEDDLING.contains(&name);
    for (name, _) in std::env::vars_os().filter(|(name, _)| meddles(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    command
}

/// Runs `command` to its end with `input` on its standard input.
pub(crate) fn feed(command: &mut Command, input: impl Into<Vec<u8>>) -> Ended {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it can be started");
    let (mut stdin, input) = (child.stdin.take().expect("a pipe"), input.into());
    // Aside, so that neither waits for the other; a process that ends early does not read it all.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    feeder.join().expect("the feeder ends");
    let text = |bytes| String::from_utf8(bytes).expect("output is UTF-8");
    Ended { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs the binary with `arguments` and `input`.
pub(crate) fn run(arguments: &[&str], input: &str) -> Ended {
    feed(&mut vitag(arguments), input)
}

impl Ended {
    /// Standard output, of a run that must have gone well.
    #[track_caller]
    pub(crate) fn output(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{}", self.stdout);
        self.stdout
    }

    /// Holds a failure against its exit code and words that its message must have.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {}", self.stderr);
        }
    }
}

/// A file of this name and content in `folder`.
pub(crate) fn file(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, content).expect("a temporary file can be written");
    path
}
