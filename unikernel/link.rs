/// Has the binaries of the package that is being built linked as bare Xen PV kernels, by the linker script at `script`.
fn link_as_kernel(script: &std::path::Path) {
    println!("cargo:rerun-if-changed={}", script.display());
    let script = format!("-T{}", script.display());
    for arg in [
        script.as_str(),
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,-z,max-page-size=4096",
        "-Wl,--icf=all",
    ] {
        println!("cargo:rustc-link-arg-bins={arg}");
    }
}
