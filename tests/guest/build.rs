//! Links the image as a bare Xen PV kernel, like the stub's.

include!("../../unikernel/link.rs");

fn main() {
    let unikernel = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../unikernel");
    link_as_kernel(&unikernel.join("link.ld"));
}
