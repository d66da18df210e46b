//! Memory: what the allocator keeps of a burst goes back to the system.
//!
//! glibc has arenas for the threads of the runtime and of the clients, and of what is free in one it gives
//! back only what lies at its end. Where brokers come and go a bridge that uses 20 to 70 MiB was seen to
//! hold 300 MiB of free memory after some minutes, and to grow for as long as one looked.

use std::time::Duration;

/// It takes some milliseconds, in which those who allocate may wait.
const EVERY: Duration = Duration::from_secs(60);

/// Gives back what is free, now and then, for ever.
pub async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        // A thread of its own: the pages of all arenas are gone through.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn trim() {
    // SAFETY: it may be called at any time, from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back what is free by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn trim() {}
