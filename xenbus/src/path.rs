//! Names of the xenstore nodes that Bulkhead reads and writes.
