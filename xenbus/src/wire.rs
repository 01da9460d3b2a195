//! The xenstore message format (`xen/include/public/io/xs_wire.h`).
