//! What is wrong with the settings, all of it at once.

use std::fmt;
use std::path::PathBuf;

/// Every problem found in the settings; displays one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl ConfigError {
    /// The problems, in the order of layers and keys; never empty.
    pub fn problems(&self) -> &[String] {
        &self.problems
    }

    pub(super) fn single(problem: impl fmt::Display) -> Self {
        Self { problems: vec![problem.to_string()] }
    }

    /// An error if there is any problem.
    pub(super) fn from_problems(problems: Vec<String>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.problems.join("\n"))
    }
}

impl std::error::Error for ConfigError {}

/// Where a value that is not the default came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The settings file.
    File(PathBuf),
    /// The environment variable of this name.
    Env(String),
    /// `--set` on the command line.
    Set,
    /// Worked out from something else, named here.
    Derived(&'static str),
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Set => f.write_str("--set"),
            Self::Derived(source) => f.write_str(source),
        }
    }
}
