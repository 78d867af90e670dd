//! Threads whose work nobody waits for in a hurry.

/// How far behind, in the units of `nice`: beside a thread that produces blocks on the same core, a tenth of it.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// The calling thread gives way to others from now on. Where that cannot be asked for, it goes on as before.
#[cfg(target_os = "linux")]
pub(crate) fn give_way() {
    // Of no process but the calling thread: that is what Linux means by none.
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Elsewhere this is asked for a whole process only.
#[cfg(not(target_os = "linux"))]
pub(crate) fn give_way() {}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_thread_gives_way_alone() {
        let nice = || rustix::process::getpriority_process(None).unwrap();
        let before = nice();
        let given = std::thread::spawn(move || {
            give_way();
            nice()
        });
        assert_eq!(given.join().unwrap(), before.max(NICE));
        assert_eq!(nice(), before);
    }
}
