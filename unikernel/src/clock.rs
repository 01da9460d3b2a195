//! Time since boot, by Xen's paravirtual clock (`struct vcpu_time_info`, `xen/include/public/xen.h`).

use crate::kept;
use crate::shared_info;
use core::arch::x86_64::_rdtsc;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use core::time::Duration;

/// System time at boot, in nanoseconds.
static BOOT: AtomicU64 = AtomicU64::new(0);

/// Makes the start of the first run the origin of [`now`], also in later runs.
pub fn init() {
    BOOT.store(kept::boot_time(system_time()), Ordering::Relaxed);
}

/// Time since the first [`init`].
pub fn now() -> Duration {
    Duration::from_nanos(system_time().saturating_sub(BOOT.load(Ordering::Relaxed)))
}

/// Xen's system time at `since_boot`, in nanoseconds: the clock of `SCHEDOP_poll`'s timeout.
pub fn to_system_time(since_boot: Duration) -> u64 {
    let nanoseconds = u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX);
    BOOT.load(Ordering::Relaxed).saturating_add(nanoseconds)
}

/// Time from the Unix epoch to the first [`init`]; `None` while Xen does not know the date.
#[cfg(feature = "net")]
pub fn booted() -> Option<Duration> {
    let info = shared_info::page()?;
    loop {
        // SAFETY: as in `system_time`, with the version of these fields.
        let (version, seconds, nanoseconds, after) = unsafe {
            let version = (&raw const (*info).wc_version).read_volatile();
            fence(Ordering::Acquire);
            let seconds = (&raw const (*info).wc_sec).read_volatile();
            let high = (&raw const (*info).wc_sec_hi).read_volatile();
            let nanoseconds = (&raw const (*info).wc_nsec).read_volatile();
            fence(Ordering::Acquire);
            let seconds = u64::from(high) << 32 | u64::from(seconds);
            (
                version,
                seconds,
                nanoseconds,
                (&raw const (*info).wc_version).read_volatile(),
            )
        };
        if version == after && version & 1 == 0 {
            // The date at system time 0.
            let start = Duration::from_secs(seconds) + Duration::from_nanos(nanoseconds.into());
            let boot = start + Duration::from_nanos(BOOT.load(Ordering::Relaxed));
            return (seconds != 0).then_some(boot);
        }
    }
}

/// A number that no other stub and no other run is likely to have.
#[cfg(feature = "net")]
pub fn seed() -> u64 {
    // SAFETY: every x86-64 CPU has a time stamp counter.
    let ticks = unsafe { _rdtsc() };
    // splitmix64's step spreads the low bits, which alone differ.
    let mixed = (ticks ^ system_time().rotate_left(32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ mixed >> 31).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// Ticks from `stamp` to `now`. Both wrap: soon after power-on Xen extrapolates a stamp from before the counter's start. A
/// stamp from another CPU may lie a little ahead, which counts as 0.
const fn elapsed(now: u64, stamp: u64) -> u64 {
    let ticks = now.wrapping_sub(stamp);
    if ticks > i64::MAX as u64 { 0 } else { ticks }
}

/// Nanoseconds for `ticks` of the time stamp counter.
const fn scale(ticks: u64, shift: i8, multiplier: u32) -> u64 {
    let ticks = if shift >= 0 {
        ticks << (shift as u32 & 63)
    } else {
        ticks >> (shift.unsigned_abs() as u32 & 63)
    };
    ((ticks as u128 * multiplier as u128) >> 32) as u64
}

/// Xen's system time now, in nanoseconds.
fn system_time() -> u64 {
    let Some(info) = shared_info::page() else {
        return 0;
    };
    loop {
        // SAFETY: `info` points to the mapped shared info page; Xen may write it at any moment, hence volatile reads,
        // and the version (odd while Xen writes) tells whether what was read belongs together. Every x86-64 CPU has a time
        // stamp counter. It is read between the two versions: Xen writes when it moves the vCPU, and another processor's
        // counter may be far from this stamp.
        let (version, copy, ticks, after) = unsafe {
            let time = &raw const (*info).vcpu_info[0].time;
            let version = (&raw const (*time).version).read_volatile();
            fence(Ordering::Acquire);
            let copy = time.read_volatile();
            let ticks = _rdtsc();
            fence(Ordering::Acquire);
            (version, copy, ticks, (&raw const (*time).version).read_volatile())
        };
        if version == after && version & 1 == 0 {
            let ticks = elapsed(ticks, copy.tsc_timestamp);
            return copy.system_time + scale(ticks, copy.tsc_shift, copy.tsc_to_system_mul);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{elapsed, scale};

    #[test]
    fn a_stamp_from_before_the_counters_start_counts() {
        assert_eq!(elapsed(500, 0u64.wrapping_sub(100)), 600);
        assert_eq!(elapsed(500, 501), 0);
    }

    #[test]
    fn ticks_scale_by_shift_and_fraction() {
        // 1 GHz: one tick is one nanosecond = 2^31 * 2 / 2^32.
        assert_eq!(scale(1_000, 1, 1 << 31), 1_000);
        // 4 GHz: a quarter.
        assert_eq!(scale(4_000, -1, 1 << 31), 1_000);
        assert_eq!(scale(u64::MAX, 0, u32::MAX), 0xffff_fffe_ffff_ffff);
    }
}
