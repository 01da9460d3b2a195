//! The image's entry point, and the start of every run.
//!
//! The image describes itself by ELF notes (`xen/include/public/elfnote.h`): a 64-bit PV kernel, linked at
//! `va = pfn * 4096`, entered at `_start` with rsi pointing to start info. Each run goes on in `boot`, at the symbol
//! `bulkhead_enter`.

use core::arch::global_asm;

/// Bytes of the stack.
const STACK_SIZE: usize = 64 * 1024;

global_asm!(
    // One note: name "Xen", type, and the descriptor that follows up to the label 3.
    ".macro xen_note type",
    "  .long 4",
    "  .long 3f - 2f",
    "  .long \\type",
    "  .asciz \"Xen\"",
    "2:",
    ".endm",
    ".macro xen_note_end",
    "3:",
    "  .balign 4",
    ".endm",
    ".section .note.Xen, \"a\", @note",
    ".balign 4",
    "xen_note {guest_os}; .asciz \"Bulkhead\"; xen_note_end",
    "xen_note {xen_version}; .asciz \"xen-3.0\"; xen_note_end",
    "xen_note {loader}; .asciz \"generic\"; xen_note_end",
    "xen_note {pae}; .asciz \"yes\"; xen_note_end",
    "xen_note {virt_base}; .quad 0; xen_note_end",
    "xen_note {paddr_offset}; .quad 0; xen_note_end",
    "xen_note {entry}; .quad _start; xen_note_end",
    "xen_note {hypercall_page}; .quad hypercall_page; xen_note_end",
    ".previous",
    guest_os = const xen_sys::XEN_ELFNOTE_GUEST_OS,
    xen_version = const xen_sys::XEN_ELFNOTE_XEN_VERSION,
    loader = const xen_sys::XEN_ELFNOTE_LOADER,
    pae = const xen_sys::XEN_ELFNOTE_PAE_MODE,
    virt_base = const xen_sys::XEN_ELFNOTE_VIRT_BASE,
    paddr_offset = const xen_sys::XEN_ELFNOTE_PADDR_OFFSET,
    entry = const xen_sys::XEN_ELFNOTE_ENTRY,
    hypercall_page = const xen_sys::XEN_ELFNOTE_HYPERCALL_PAGE,
);

global_asm!(
    ".section .keep, \"aw\", @nobits",
    ".balign 4096",
    "stack_guard:",
    ".skip 4096",
    ".skip {size}",
    "stack_top:",
    "start_info:",
    ".skip 8",
    ".section .text.entry, \"ax\", @progbits",
    // Xen jumps here, once.
    ".globl _start",
    "_start:",
    "mov [rip + start_info], rsi",
    // Every run begins here: variables have their first values, the stack is empty.
    "begin_run:",
    "cld",
    "xor eax, eax",
    "lea rdi, [rip + bss_start]",
    "lea rcx, [rip + bss_end]",
    "sub rcx, rdi",
    "rep stosb",
    "lea rsi, [rip + data_load]",
    "lea rdi, [rip + data_start]",
    "lea rcx, [rip + data_end]",
    "sub rcx, rdi",
    "rep movsb",
    "lea rsp, [rip + stack_top]",
    "xor ebp, ebp",
    "mov rdi, [rip + start_info]",
    "call bulkhead_enter",
    "ud2",
    ".previous",
    size = const STACK_SIZE,
);

unsafe extern "C" {
    /// The page below the stack.
    static stack_guard: u8;
    /// Where every run begins. Not to be called: it takes the stack away.
    fn begin_run() -> !;
}

/// Starts a new run. Nothing of this one goes on.
pub fn restart_in_place() -> ! {
    // SAFETY: `begin_run` does to memory what Xen's loader did before the first run: it writes all variables, and
    // the stack is taken as empty, but for what `kept` keeps on purpose. Nothing of this run runs afterwards or
    // is looked at: its stack is overwritten, its heap is made anew, and there is no other thread. What Xen, dom0 or
    // the guest may still write is none of that memory: pages shared with them are in areas of their own
    // (`memory`), from which nothing is reused before the peer has let go of it. What is mapped and what ports are
    // open `set_up` finds out and undoes before anything new is mapped.
    unsafe { begin_run() }
}

/// The address of the page below the stack.
pub fn stack_guard_page() -> usize {
    (&raw const stack_guard) as usize
}
