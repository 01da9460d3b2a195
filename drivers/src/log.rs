//! Macros for log lines over the crate `log`. Its own macros would put file, line and module of every call into the image:
//! 4.3 KiB that nobody prints (decision 46).

use core::fmt;
pub use log::Level;
use log::Record;

/// Logs a line, if lines of this level are wanted.
#[inline(never)]
pub fn write(level: Level, line: fmt::Arguments<'_>) {
    if level <= log::max_level() {
        log::logger().log(&Record::builder().level(level).args(line).build());
    }
}

/// Declares the macro that logs at one level.
macro_rules! level {
    ($exported:ident, $name:ident, $level:ident, $dollar:tt) => {
        #[doc = concat!("Logs a line at [`Level::", stringify!($level), "`], with the arguments of `format!`.")]
        #[macro_export]
        macro_rules! $exported {
            ($dollar($dollar part:tt)+) => {
                $dollar crate::log::write($dollar crate::log::Level::$level, format_args!($dollar($dollar part)+))
            };
        }
        pub use $exported as $name;
    };
}

level!(log_error, error, Error, $);
level!(log_warn, warn, Warn, $);
level!(log_info, info, Info, $);
level!(log_debug, debug, Debug, $);
