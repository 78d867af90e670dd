//! Rival implementations and timing helpers for the benches. Never published, so that the library does not
//! carry its rivals.

pub mod workload_s;

use std::path::Path;

use flagstone::database::{StoreEntry, StoreSettings};
use flagstone::store::Store;

/// A store in a directory, as it is unless told otherwise.
#[expect(clippy::expect_used, reason = "a bench without a place for its database measures nothing")]
pub fn store_in(entry: &StoreEntry, dir: &Path) -> Box<dyn Store> {
    entry.open(dir, &StoreSettings::default()).expect("an empty directory takes a database")
}

/// What the system says of this process. Zero where it does not say.
pub mod process {
    use std::fs;
    use std::time::Duration;

    /// CPU time of all threads that are there now.
    pub fn cpu_time() -> Duration {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let of_task = |task: fs::DirEntry| -> Option<u64> {
            let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse().ok()
        };
        Duration::from_nanos(tasks.filter_map(of_task).sum())
    }

    /// Bytes of memory that no file backs.
    pub fn anonymous_memory() -> usize {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
        kibibytes.unwrap_or(0) * 1024
    }
}

/// Interleaved measurements: every contender runs a short slice in turn, so that a slow spell of the machine
/// hits all of them alike.
pub mod interleaved {
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    /// Time of one turn.
    const TURN: Duration = Duration::from_millis(3);

    /// Something that is timed.
    pub struct Contender<'a> {
        name: String,
        items: usize,
        run: Box<dyn FnMut() + 'a>,
        nanos: Vec<f64>,
    }

    impl<'a> Contender<'a> {
        /// One call of `run` does `items` items.
        pub fn new(name: impl Into<String>, items: usize, run: impl FnMut() + 'a) -> Contender<'a> {
            Contender { name: name.into(), items, run: Box::new(run), nanos: Vec::new() }
        }

        fn turn(&mut self) {
            let mut calls = 0;
            let start = Instant::now();
            while start.elapsed() < TURN {
                black_box(&mut self.run)();
                calls += 1;
            }
            self.nanos.push(start.elapsed().as_nanos() as f64 / (calls * self.items) as f64);
        }

        /// Nanoseconds per item: the least and the median of all turns.
        fn result(&mut self) -> (f64, f64) {
            self.nanos.sort_by(f64::total_cmp);
            (self.nanos[0], self.nanos[self.nanos.len() / 2])
        }
    }

    /// Runs `turns` turns of each and prints nanoseconds per item and ratios to the first contender.
    pub fn compare(title: &str, turns: usize, mut contenders: Vec<Contender<'_>>) {
        contenders.iter_mut().for_each(|contender| (contender.run)());
        for _ in 0..turns {
            contenders.iter_mut().for_each(Contender::turn);
        }
        println!("\n{title}");
        println!("{:<52} {:>10} {:>10} {:>9} {:>9}", "", "min ns", "median ns", "min x", "median x");
        let (base_min, base_median) = contenders[0].result();
        for contender in &mut contenders {
            let (min, median) = contender.result();
            println!(
                "{:<52} {min:>10.0} {median:>10.0} {:>9.2} {:>9.2}",
                contender.name,
                base_min / min,
                base_median / median
            );
        }
    }
}
