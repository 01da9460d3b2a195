//! Debian's kernel without its packing.
//!
//! The kernel is shipped as a bzImage: a loader and the packed kernel proper. Xen and the domain builder would
//! unpack it at every boot, and an emulated processor takes seconds for that. Both also take the kernel proper, an
//! ELF file, so it is unpacked once, here. (Linux `Documentation/arch/x86/boot.rst` has the header.)

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};

/// Offset of the number of sectors of set-up code; 0 stands for 4.
const SETUP_SECTORS: usize = 0x1f1;
/// Offset of the header's magic number.
const MAGIC: usize = 0x202;
/// Offset of the protocol's version: from 2.08 on the header tells where the payload is.
const VERSION: usize = 0x206;
/// Offset of the payload's offset, which counts from the end of the set-up code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The ELF file in a bzImage.
///
/// # Errors
/// It is no bzImage, is packed by something other than xz or zstd (which is what Debian uses), or is damaged.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(image).context("this is no Linux bzImage")?;
    let mut kernel = Vec::new();
    if payload.starts_with(XZ) {
        lzma_rust2::XzReader::new(payload, false)
            .read_to_end(&mut kernel)
            .context("unpacking xz")?;
    } else if payload.starts_with(ZSTD) {
        let mut decoder = ruzstd::decoding::StreamingDecoder::new(payload).context("unpacking zstd")?;
        decoder.read_to_end(&mut kernel).context("unpacking zstd")?;
    } else {
        bail!(
            "the kernel is packed by neither xz nor zstd: its payload starts with {:02x?}",
            &payload[..4]
        );
    }
    // The payload ends with the size of what it unpacks to.
    let size = payload
        .last_chunk()
        .map(|bytes| u32::from_le_bytes(*bytes) as usize);
    ensure!(
        size == Some(kernel.len()),
        "unpacking gave {} bytes, {size:?} were announced",
        kernel.len()
    );
    ensure!(kernel.starts_with(b"\x7fELF"), "what was packed is no ELF file");
    Ok(kernel)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let long = |at: usize| Some(u32::from_le_bytes(*image.get(at..)?.first_chunk()?) as usize);
    let version = u16::from_le_bytes(*image.get(VERSION..)?.first_chunk()?);
    if image.get(MAGIC..MAGIC + 4)? != b"HdrS" || version < 0x208 {
        return None;
    }
    let sectors = match *image.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * SECTOR + long(PAYLOAD_OFFSET)?;
    let payload = image.get(start..start.checked_add(long(PAYLOAD_LENGTH)?)?)?;
    (payload.len() >= 8).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one sector of set-up code and the payload right after it.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR];
        image[SETUP_SECTORS] = 1;
        image[MAGIC..MAGIC + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image.resize(PAYLOAD_LENGTH + 4, 0);
        image[PAYLOAD_LENGTH..].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.resize(2 * SECTOR, 0);
        image.extend_from_slice(payload);
        image
    }

    /// A zstd frame of one raw block: magic, single segment with a size of one byte, block header, the bytes.
    fn zstd(content: &[u8], announced: u32) -> Vec<u8> {
        let size = content.len() as u8;
        let header = (u32::from(size) << 3 | 1).to_le_bytes();
        let frame: [&[u8]; 5] = [
            ZSTD,
            &[0x20, size],
            &header[..3],
            content,
            &announced.to_le_bytes(),
        ];
        frame.concat()
    }

    #[test]
    fn a_kernel_packed_by_zstd_comes_out() {
        let elf = b"\x7fELF and so on";
        assert_eq!(
            unpack(&image(&zstd(elf, elf.len() as u32))).expect("well-formed"),
            elf
        );
    }

    #[test]
    fn a_kernel_of_another_size_than_announced_is_refused() {
        let error = unpack(&image(&zstd(b"\x7fELF", 5))).expect_err("one byte is missing");
        assert_eq!(
            error.to_string(),
            "unpacking gave 4 bytes, Some(5) were announced"
        );
    }

    #[test]
    fn an_unknown_packing_is_named_by_its_first_bytes() {
        let error = unpack(&image(b"BZh91AY&")).expect_err("bzip2");
        assert!(
            error.to_string().ends_with("starts with [42, 5a, 68, 39]"),
            "{error}"
        );
    }

    #[test]
    fn what_is_cut_short_anywhere_is_refused() {
        let elf = b"\x7fELF";
        let whole = image(&zstd(elf, 4));
        for length in 0..whole.len() {
            assert!(unpack(&whole[..length]).is_err(), "{length} bytes");
        }
    }
}
