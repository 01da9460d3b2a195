//! A xenstore client over any byte transport.
