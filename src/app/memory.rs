//! Memory: what the allocator keeps of a burst goes back to the system.
//!
//! glibc has arenas for the threads of the runtime and of the clients, and of what is free in one it gives
//! back only what lies at its end. Where brokers come and go a bridge that uses 20 to 70 MiB was seen to
//! hold 300 MiB of free memory after some minutes, and to grow for as long as one looked. And what is large
//! it takes from the arenas too, once some of it has been freed: with a backlog of 100,000 on Kafka, which
//! comes in pieces of a megabyte, that was a third of all memory.

use std::time::Duration;

/// Bytes: glibc's own limit, before it moves with what is freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const LARGE: libc::c_int = 128 * 1024;
/// It takes some milliseconds, in which those who allocate may wait.
const EVERY: Duration = Duration::from_secs(60);

/// Has what is large be taken from the system, and given back, by itself; and arenas be few. To be called
/// before there are threads. What the environment says (`MALLOC_ARENA_MAX` and the like, or `GLIBC_TUNABLES`)
/// stands.
pub fn set_up(workers: usize) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        let arenas = (2 * workers).max(4).try_into().unwrap_or(4);
        let is_tuned = std::env::var_os("GLIBC_TUNABLES").is_some();
        for (variable, option, value) in [
            ("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, arenas),
            ("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, LARGE),
            ("MALLOC_TRIM_THRESHOLD_", libc::M_TRIM_THRESHOLD, LARGE),
        ] {
            if !is_tuned && std::env::var_os(variable).is_none() {
                // SAFETY: it sets a number of the allocator's.
                unsafe { libc::mallopt(option, value) };
            }
        }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = workers;
}

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
