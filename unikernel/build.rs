//! Links the image `bulkhead-stub` as a bare Xen PV kernel.

include!("link.rs");

fn main() {
    link_as_kernel(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("link.ld"));
}
