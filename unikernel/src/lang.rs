//! What Rust needs in an image without an operating system: heap, panic handler, memory functions.

use crate::memory;
use crate::restart;
use crate::shutdown::{Reason, stop};
use core::alloc::{GlobalAlloc, Layout};
use core::arch::asm;
use core::panic::PanicInfo;
use core::ptr::NonNull;
use drivers::crash_log::Cause;
use drivers::log;
use linked_list_allocator::Heap;
use spin::Mutex;

#[global_allocator]
static HEAP: LockedHeap = LockedHeap(Mutex::new(Heap::empty()));

/// The heap. One vCPU and no interrupts: the lock is never contended, it only makes the static sound.
struct LockedHeap(Mutex<Heap>);

// SAFETY: hands out what linked_list_allocator hands out, unchanged: areas that fit the layout and do not overlap.
unsafe impl GlobalAlloc for LockedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .lock()
            .allocate_first_fit(layout)
            .map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, area: *mut u8, layout: Layout) {
        if let Some(area) = NonNull::new(area) {
            // SAFETY: the caller passes what `alloc` returned for this layout.
            unsafe { self.0.lock().deallocate(area, layout) }
        }
    }
}

/// Gives the allocator its memory.
///
/// # Safety
/// Once in a run, after [`memory::init`]'s contract is known to hold: the heap's addresses are mapped and unused.
pub unsafe fn init_heap() {
    let heap = memory::heap();
    // SAFETY: the caller vouches for the memory, which `memory` sets aside for this.
    unsafe { HEAP.0.lock().init(heap.start as *mut u8, heap.len()) }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    restart::end(Cause::Panic, &|| log::error!("{info}"))
}

/// The landing pads of the prebuilt `alloc` name it. Nothing in the image unwinds, so that it is never called.
#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    stop(Reason::Crash)
}

// The compiler calls these for copies and comparisons that it does not unroll. `rep movsb` and its kin are used in
// place of loops, which the compiler would turn into calls of these very functions.

/// Copies `count` bytes between areas that do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for both areas; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    to
}

/// Copies `count` bytes between areas that may overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: passed on; a forward copy is right when the target does not begin inside the source.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: as above, backwards from the last byte; the direction flag is clear again afterwards.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.add(count).sub(1) => _,
             inout("rsi") from.add(count).sub(1) => _, options(nostack));
    }
    to
}

/// Fills `count` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller vouches for the area.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8,
             options(nostack, preserves_flags));
    }
    to
}

/// Compares `count` bytes: negative, zero or positive as the first difference is.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: the caller vouches for both areas. Volatile keeps this loop from becoming a call of itself.
        let (a, b) = unsafe { (left.add(index).read_volatile(), right.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

/// Compares `count` bytes: zero if equal.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, count: usize) -> i32 {
    // SAFETY: passed on.
    unsafe { memcmp(left, right, count) }
}
