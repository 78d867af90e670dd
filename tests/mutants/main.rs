//! Mutations: small changes to the code, each of which a test must notice.
//!
//! `cargo test --test mutants` holds the list (`list.txt`) against the code: each change can be made, at one place. To make them, one at
//! a time, on a copy of the tree below `target/mutants`, with the tests that should notice:
//!
//! ```text
//! cargo test --test mutants -- --run [NAME]...
//! ```
//!
//! A change counts as noticed if it builds and its tests fail. It takes about two minutes each.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const LIST: &str = include_str!("list.txt");
/// Tests that hang have noticed something, too.
const TESTS_MAX: Duration = Duration::from_secs(900);

struct Mutation<'a> {
    name: &'a str,
    promise: &'a str,
    file: &'a str,
    tests: &'a str,
    before: String,
    after: String,
}

fn main() -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mutations = match parse(LIST) {
        Ok(mutations) => mutations,
        Err(problem) => return fail(&format!("list.txt: {problem}")),
    };
    let problems: Vec<String> = mutations.iter().filter_map(|one| one.applied(root).err()).collect();
    if !problems.is_empty() {
        return fail(&problems.join("\n"));
    }
    let mut words = std::env::args().skip(1).skip_while(|word| word != "--run");
    if words.next().is_none() {
        println!("{} mutations can be made", mutations.len());
        return ExitCode::SUCCESS;
    }
    let names: Vec<String> = words.collect();
    let chosen = mutations.iter().filter(|one| names.is_empty() || names.iter().any(|name| name == one.name));
    run(root, &chosen.collect::<Vec<_>>())
}

fn fail(problem: &str) -> ExitCode {
    eprintln!("{problem}");
    ExitCode::FAILURE
}

/// Reads the list: a line of four parts, and between `<<<`, `===` and `>>>` the text before and after.
fn parse(list: &str) -> Result<Vec<Mutation<'_>>, String> {
    let mut lines = list.lines().filter(|line| !line.starts_with('#'));
    let mut mutations = Vec::new();
    while let Some(line) = lines.by_ref().find(|line| !line.is_empty()) {
        let parts: Vec<&str> = line.split(" | ").collect();
        let [name, promise, file, tests] = parts[..] else {
            return Err(format!("`{line}` has not four parts"));
        };
        if lines.next() != Some("<<<") {
            return Err(format!("`{name}` has no `<<<`"));
        }
        let before: Vec<&str> = lines.by_ref().take_while(|line| *line != "===").collect();
        let after: Vec<&str> = lines.by_ref().take_while(|line| *line != ">>>").collect();
        let (before, after) = (before.join("\n"), after.join("\n"));
        mutations.push(Mutation { name, promise, file, tests, before, after });
    }
    Ok(mutations)
}

impl Mutation<'_> {
    /// The file with the change made, and without it.
    fn applied(&self, root: &Path) -> Result<(String, String), String> {
        let path = root.join(self.file);
        let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        match text.matches(&self.before).count() {
            1 => Ok((text.replace(&self.before, &self.after), text)),
            count => Err(format!("{}: its text is {count} times in {}", self.name, self.file)),
        }
    }

    /// `cargo test` with the tests that should notice. Words that are no options, and belong to none, choose tests.
    fn cargo(&self, tree: &Path, more: &[&str]) -> Command {
        let (mut options, mut filters) = (Vec::new(), Vec::new());
        let mut words = self.tests.split_whitespace();
        while let Some(word) = words.next() {
            match word {
                "-p" | "--test" => options.extend([word].into_iter().chain(words.next())),
                word if word.starts_with('-') => options.push(word),
                word => filters.push(word),
            }
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.current_dir(tree).env("CARGO_TARGET_DIR", tree.with_file_name("build"));
        cargo.args(["test", "--locked", "--quiet"]).args(options).args(more).arg("--").args(filters);
        cargo.stdout(Stdio::null()).stderr(Stdio::null());
        cargo
    }
}

/// Makes the changes one after another, and says which were noticed.
fn run(root: &Path, mutations: &[&Mutation<'_>]) -> ExitCode {
    let tree = match copy(root) {
        Ok(tree) => tree,
        Err(problem) => return fail(&problem),
    };
    let mut missed = 0;
    for one in mutations {
        let began = Instant::now();
        let verdict = one.applied(&tree).and_then(|(with, without)| {
            let write = |text: &str| fs::write(tree.join(one.file), text).map_err(|error| error.to_string());
            write(&with)?;
            let noticed = notice(one, &tree);
            write(&without)?;
            noticed
        });
        let (verdict, is_noticed) = match &verdict {
            Ok(true) => ("noticed", true),
            Ok(false) => ("MISSED", false),
            Err(problem) => (problem.as_str(), false),
        };
        missed += usize::from(!is_noticed);
        println!("{verdict:8} {:4} s  {}  ({})", began.elapsed().as_secs(), one.name, one.promise);
    }
    println!("{} of {} noticed", mutations.len() - missed, mutations.len());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether the tests fail. The change must build.
fn notice(one: &Mutation<'_>, tree: &Path) -> Result<bool, String> {
    let built = one.cargo(tree, &["--no-run"]).status().map_err(|error| error.to_string())?;
    if !built.success() {
        return Err("does not build".into());
    }
    let mut tests = one.cargo(tree, &[]).process_group(0).spawn().map_err(|error| error.to_string())?;
    let began = Instant::now();
    while began.elapsed() < TESTS_MAX {
        match tests.try_wait().map_err(|error| error.to_string())? {
            Some(status) => return Ok(!status.success()),
            None => thread::sleep(Duration::from_millis(100)),
        }
    }
    // Its children, too.
    let group = format!("-{}", tests.id());
    let killed = Command::new("kill").args(["-KILL", "--", &group]).status();
    killed.and_then(|_| tests.wait()).map_err(|error| error.to_string())?;
    Ok(true)
}

/// Copies what belongs to the repository to where nobody works, where it differs from what is there.
fn copy(root: &Path) -> Result<PathBuf, String> {
    let tree = root.join("target/mutants/tree");
    let listed =
        Command::new("git").current_dir(root).args(["ls-files", "-co", "--exclude-standard"]).output();
    let listed = listed.map_err(|error| format!("git ls-files: {error}"))?;
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        let (from, to) = (root.join(file), tree.join(file));
        // A file that is deleted and not committed is listed all the same.
        let Ok(bytes) = fs::read(&from) else { continue };
        if fs::read(&to).is_ok_and(|there| there == bytes) {
            continue;
        }
        let made = fs::create_dir_all(to.parent().unwrap_or(&tree)).and_then(|()| fs::write(&to, bytes));
        made.map_err(|error| format!("{}: {error}", to.display()))?;
    }
    Ok(tree)
}
