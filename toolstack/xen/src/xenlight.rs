//! Creating a domain with a number of our choice, through the host's own `libxenlight`.
//!
//! `xl` cannot choose the number, but its library can (`libxl_domain_create_info.domid`). The layout of the library's
//! structures changes with every release, so none is declared here. The configuration goes in as JSON that the library
//! itself has made, into a buffer that is larger than any version's structure.
//!
//! libxl starts processes, catches SIGCHLD and keeps memory until the process ends. So only a process of its own uses it,
//! `bulkhead recreate` (decision 54).

use crate::xenctrl::{DIRECTORIES, DomId};
use libloading::Library;
use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr::{NonNull, null, null_mut};
use thiserror::Error;

/// Why libxl cannot be used, or refused.
#[derive(Debug, Error)]
pub enum XenlightError {
    /// No library for this Xen.
    #[error(
        "found no libxenlight.so.{version}: install the Xen utilities of that version (Debian: libxenmisc{version})"
    )]
    NoLibrary {
        /// Major and minor version of the running Xen.
        version: String,
    },
    /// The library is not what its name says.
    #[error("{path} cannot be used: install the Xen utilities that fit the running Xen")]
    Unusable {
        /// The library.
        path: String,
        /// What the loader said.
        #[source]
        source: libloading::Error,
    },
    /// The library said no; its reason is on standard error.
    #[error("libxl refused to {what} (its error {code})")]
    Refused {
        /// What it was asked for.
        what: &'static str,
        /// `ERROR_*` of its `libxl_types.idl`.
        code: c_int,
    },
    /// A text with a zero byte.
    #[error("the configuration holds a zero byte")]
    ZeroByte,
}

/// `libxl_ctx *`, which only the library looks into.
type Context = *mut c_void;
/// `libxl_domain_config *`, likewise.
type Config = *mut c_void;

/// `LIBXL_VERSION` of `libxl.h`.
const LIBXL_VERSION: c_int = 0;
/// `XTL_ERROR` of `xentoollog.h`: the lowest level that is logged.
const XTL_ERROR: c_int = 8;
/// Larger than `libxl_domain_config` of any version: 1288 bytes in 4.17. All the library's accesses stay within what its
/// own headers say.
const CONFIG: Layout = match Layout::from_size_align(64 << 10, 64) {
    Ok(layout) => layout,
    Err(_) => panic!("no layout"),
};

// SAFETY: as libc declares it (`stdio.h`).
unsafe extern "C" {
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut c_void;
}

/// The functions used, as `libxl.h` declares them for callers of API version 4.13 and later.
struct XenlightFunctions {
    ctx_free: unsafe extern "C" fn(Context) -> c_int,
    config_init: unsafe extern "C" fn(Config),
    config_dispose: unsafe extern "C" fn(Config),
    config_from_json: unsafe extern "C" fn(Context, Config, *const c_char) -> c_int,
    create_new: unsafe extern "C" fn(Context, Config, *mut u32, *const c_void, *const c_void) -> c_int,
    destroy: unsafe extern "C" fn(Context, u32, *const c_void) -> c_int,
    clear_history: unsafe extern "C" fn(Context) -> c_int,
}

/// An open library.
pub struct Xenlight {
    context: NonNull<c_void>,
    functions: XenlightFunctions,
    /// Keep the code that `functions` point into mapped; dropped last.
    _libraries: [Library; 2],
}

/// The library's file for the Xen with this version, without a look into it.
pub fn installed(version: &str) -> Result<PathBuf, XenlightError> {
    let name = format!("libxenlight.so.{version}");
    let mut candidates = DIRECTORIES
        .iter()
        .map(|directory| PathBuf::from(directory).join(&name));
    candidates
        .find(|path| path.exists())
        .ok_or_else(|| XenlightError::NoLibrary {
            version: version.to_owned(),
        })
}

impl Xenlight {
    /// Loads the library of the running Xen, whose version is `version`. Its errors go to standard error.
    pub fn open(version: &str) -> Result<Self, XenlightError> {
        let path = installed(version)?;
        let unusable = |path: &std::path::Path| {
            let path = path.display().to_string();
            move |source| XenlightError::Unusable { path, source }
        };
        // SAFETY: the system's own library, found in a directory that only root writes; loading it runs no
        // initialiser beyond those of libc's kind.
        let xenlight = unsafe { Library::new(&path) }.map_err(unusable(&path))?;
        let path = PathBuf::from("libxentoollog.so.1");
        // SAFETY: as above; libxenlight needs it, so it is loaded already.
        let toollog = unsafe { Library::new(&path) }.map_err(unusable(&path))?;
        type CreateLogger = unsafe extern "C" fn(*mut c_void, c_int, c_uint) -> *mut c_void;
        type Alloc = unsafe extern "C" fn(*mut Context, c_int, c_uint, *mut c_void) -> c_int;
        // SAFETY: each type is the declaration of the named function in xentoollog.h and libxl.h, and the pointers
        // are used only while the libraries stay loaded, as `Self` keeps them.
        let (create_logger, alloc, functions) = unsafe {
            let load = || {
                Ok((
                    *toollog.get::<CreateLogger>(b"xtl_createlogger_stdiostream\0")?,
                    *xenlight.get::<Alloc>(b"libxl_ctx_alloc\0")?,
                    XenlightFunctions {
                        ctx_free: *xenlight.get(b"libxl_ctx_free\0")?,
                        config_init: *xenlight.get(b"libxl_domain_config_init\0")?,
                        config_dispose: *xenlight.get(b"libxl_domain_config_dispose\0")?,
                        config_from_json: *xenlight.get(b"libxl_domain_config_from_json\0")?,
                        create_new: *xenlight.get(b"libxl_domain_create_new\0")?,
                        destroy: *xenlight.get(b"libxl_domain_destroy\0")?,
                        clear_history: *xenlight.get(b"libxl_clear_domid_history\0")?,
                    },
                ))
            };
            load().map_err(unusable(&path))?
        };
        let mut context = null_mut();
        // SAFETY: standard error is open for as long as the process lives, and so are the stream and the logger made
        // of it: both are never freed. A logger that could not be made is null, which is not passed on.
        let code = unsafe {
            let stream = fdopen(2, c"w".as_ptr());
            let logger = if stream.is_null() {
                null_mut()
            } else {
                create_logger(stream, XTL_ERROR, 0)
            };
            if logger.is_null() {
                return Err(XenlightError::Refused { what: "log", code: 0 });
            }
            alloc(&mut context, LIBXL_VERSION, 0, logger)
        };
        let context = NonNull::new(context)
            .filter(|_| code == 0)
            .ok_or(XenlightError::Refused { what: "start", code })?;
        Ok(Self {
            context,
            functions,
            _libraries: [xenlight, toollog],
        })
    }

    /// Destroys a domain, with all that libxl and xl keep of it.
    pub fn destroy(&mut self, domain: DomId) -> Result<(), XenlightError> {
        // SAFETY: the context is live; null asks for an answer when it is done.
        let code = unsafe { (self.functions.destroy)(self.context.as_ptr(), domain.into(), null()) };
        accepted("destroy the domain", code)
    }

    /// Clears libxl's list of the numbers of domains that ended in the last minute, so that it accepts any number again.
    pub fn forget_numbers(&mut self) -> Result<(), XenlightError> {
        // SAFETY: the context is live.
        let code = unsafe { (self.functions.clear_history)(self.context.as_ptr()) };
        accepted("forget the numbers of domains that have gone", code)
    }

    /// Creates a domain from the JSON of its configuration (`libxl_domain_config`), paused, and returns its number.
    ///
    /// A number that the configuration names is used; the toolstack has libxl accept it (`host/domid_history.rs`).
    pub fn create(&mut self, config: &str) -> Result<u32, XenlightError> {
        let config = CString::new(config).map_err(|_| XenlightError::ZeroByte)?;
        let context = self.context.as_ptr();
        let buffer = ConfigBuffer::new();
        let mut domid = u32::MAX;
        // SAFETY: the context is live; the buffer is writable, zeroed and larger than the structure, which is set up
        // first, used, and disposed of once; the string ends in a zero byte; `domid` outlives the call, which null
        // asks to return when it is done.
        let result = unsafe {
            (self.functions.config_init)(buffer.0.as_ptr());
            let parsed = (self.functions.config_from_json)(context, buffer.0.as_ptr(), config.as_ptr());
            let result = accepted("read the domain's configuration", parsed).and_then(|()| {
                let code =
                    (self.functions.create_new)(context, buffer.0.as_ptr(), &mut domid, null(), null());
                accepted("create the domain", code)
            });
            (self.functions.config_dispose)(buffer.0.as_ptr());
            result
        };
        result.map(|()| domid)
    }
}

impl Drop for Xenlight {
    fn drop(&mut self) {
        // SAFETY: the context came from libxl_ctx_alloc and is used no more.
        let _ = unsafe { (self.functions.ctx_free)(self.context.as_ptr()) };
    }
}

/// Memory for a `libxl_domain_config`.
struct ConfigBuffer(NonNull<c_void>);

impl ConfigBuffer {
    fn new() -> Self {
        // SAFETY: the size is not 0.
        let memory = unsafe { alloc_zeroed(CONFIG) };
        match NonNull::new(memory.cast()) {
            Some(memory) => Self(memory),
            None => handle_alloc_error(CONFIG),
        }
    }
}

impl Drop for ConfigBuffer {
    fn drop(&mut self) {
        // SAFETY: it came from `alloc_zeroed` with this layout.
        unsafe { dealloc(self.0.as_ptr().cast(), CONFIG) };
    }
}

fn accepted(what: &'static str, code: c_int) -> Result<(), XenlightError> {
    match code {
        0 => Ok(()),
        code => Err(XenlightError::Refused { what, code }),
    }
}
