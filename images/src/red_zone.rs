//! Checks that an image has no red zone.
//!
//! Xen puts the frame of an upcall right below the stack pointer of the interrupted code. So an image whose upcall
//! returns must not use the 128 bytes there (the "red zone" of the x86-64 ABI). The compiler's flag prevents that in
//! our crates, but not in the libraries that come compiled with Rust.

use anyhow::{Context, Result, ensure};
use goblin::elf::Elf;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind, Register};
use std::path::Path;

/// Refuses an image with an instruction that addresses memory below the stack pointer.
///
/// # Errors
/// There is one, or the file is no image.
pub fn check(image: &Path) -> Result<()> {
    let bytes = std::fs::read(image).with_context(|| format!("read {}", image.display()))?;
    let elf = Elf::parse(&bytes).with_context(|| format!("{} is no ELF image", image.display()))?;
    let text = elf
        .section_headers
        .iter()
        .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".text"));
    let text = text.with_context(|| format!("{} has no section .text", image.display()))?;
    let code = text.file_range().and_then(|range| bytes.get(range));
    let code = code.with_context(|| format!("{} is cut off", image.display()))?;
    let used = first_use(code, text.sh_addr);
    ensure!(
        used.is_none(),
        "{} keeps data below its stack pointer at {:#x}, where an upcall overwrites it: build it with -Cno-redzone=yes \
         for all crates (RUSTFLAGS in the environment replaces that), and see which function of Rust's own it is",
        image.display(),
        used.unwrap_or_default()
    );
    Ok(())
}

/// The address of the first instruction that addresses memory at a negative offset from the stack pointer.
fn first_use(code: &[u8], address: u64) -> Option<u64> {
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    let uses = |instruction: &Instruction| {
        let is_memory =
            (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
        // With an index register the address may be above the stack pointer.
        is_memory
            && instruction.memory_base() == Register::RSP
            && instruction.memory_index() == Register::None
            && (instruction.memory_displacement64() as i64) < 0
    };
    decoder.iter().find(uses).map(|instruction| instruction.ip())
}

#[cfg(test)]
mod tests {
    use super::first_use;

    #[test]
    fn what_lies_below_the_stack_pointer_is_found_and_nothing_else() {
        let innocent = [
            0x48, 0x89, 0x44, 0x24, 0x08, // mov [rsp+8], rax
            0x49, 0x8d, 0x84, 0x24, 0xff, 0xfb, 0xff, 0xff, // lea rax, [r12-0x401]
            0x88, 0x4c, 0x14, 0xfe, // mov [rsp+rdx-2], cl
            0x50, // push rax
        ];
        assert_eq!(first_use(&innocent, 0x10_0000), None);
        for used in [
            &[0x48, 0x89, 0x44, 0x24, 0xf8][..],               // mov [rsp-8], rax
            &[0x0f, 0x29, 0x44, 0x24, 0xc8],                   // movaps [rsp-0x38], xmm0
            &[0x48, 0x8b, 0x84, 0x24, 0x80, 0xff, 0xff, 0xff], // mov rax, [rsp-0x80]
        ] {
            let code = [&innocent, used].concat();
            assert_eq!(
                first_use(&code, 0x10_0000),
                Some(0x10_0000 + innocent.len() as u64)
            );
        }
    }
}
