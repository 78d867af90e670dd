//! Child processes, to be killed or measured. The child is this test binary again, running one ignored test
//! ([`entry`]) that does what two environment variables say, and which is nothing without them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const ROLE: &str = "FLAGSTONE_TEST_CHILD";
const DIR: &str = "FLAGSTONE_TEST_CHILD_DIR";

/// A command that runs a role in a child process. Lines it prints begin with `>`, so that they are told from the test
/// harness's own.
pub fn command(role: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "child::entry", "--nocapture", "--test-threads=1"])
        .env(ROLE, role)
        .env(DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// What a child printed, without the harness's lines.
pub fn lines(stdout: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(stdout).lines().filter_map(line).collect()
}

/// One printed line, unless it is the harness's. (The harness does not end its own first line.)
pub fn line(line: &str) -> Option<String> {
    line.split_once('>').map(|(_, text)| text.to_owned())
}

/// Runs a role to its end. Panics unless it succeeds.
pub fn run(role: &str, dir: &Path) -> Vec<String> {
    let output = command(role, dir).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "child {role} ended with {}", output.status);
    lines(&output.stdout)
}

#[test]
#[ignore = "the body of child processes; does nothing on its own"]
fn entry() {
    let (Ok(role), Ok(dir)) = (env::var(ROLE), env::var(DIR)) else { return };
    let dir = PathBuf::from(dir);
    let (name, argument) = role.split_once(' ').unwrap_or((&role, ""));
    match name {
        #[cfg(target_os = "linux")]
        "engine-load" => crate::load::child_load(&dir, argument),
        "close-forever" => crate::kills::child_close_forever(&dir, argument),
        "import" => crate::snapshot::child_import(&dir, argument),
        #[cfg(target_os = "linux")]
        "move" => crate::moving::child_move(&dir, argument),
        "sled-write-forever" => crate::store_sled::child_write_forever(&dir, argument),
        "sled-load" => crate::store_sled::child_load(&dir, argument),
        "sled-open" => crate::store_sled::child_open(&dir),
        "sled-read-damaged" => crate::store_damage::child_read(&dir),
        other => panic!("no role `{other}`"),
    }
}
