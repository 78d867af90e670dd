//! Why commands fail, and with which exit code.

use flagstone::input::InputError;
use flagstone::{Error, ErrorKind};

/// Why a command failed: the text for people, if it was not told already, and the exit code.
pub struct Failure {
    pub message: String,
    pub code: u8,
}

impl Failure {
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// The answer was no, and was printed.
    pub fn told() -> Self {
        Self { message: String::new(), code: 1 }
    }

    pub fn store(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 3 }
    }

    /// Something that was to be verified does not hold.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// This failure, which is about something that was read at `location`.
    pub fn at(mut self, location: Option<&str>) -> Self {
        if let Some(location) = location {
            self.message = format!("{location}: {}", self.message);
        }
        self
    }

    /// This failure, and after it that its answer could not be written, if it could not.
    pub fn and(mut self, answered: Result<(), Self>) -> Self {
        if let Err(lost) = answered {
            self.message = format!("{}; and {}", self.message, lost.message);
        }
        self
    }
}

pub fn exit_code_of(error: &Error) -> u8 {
    match (error.kind(), error) {
        (ErrorKind::Root, _) => 1,
        (ErrorKind::Input | ErrorKind::Expired, _) | (_, Error::Config(_) | Error::UnknownName { .. }) => 2,
        _ => 3,
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self { message: error.to_string(), code: exit_code_of(error) }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<InputError> for Failure {
    fn from(error: InputError) -> Self {
        Self::usage(error.to_string())
    }
}
