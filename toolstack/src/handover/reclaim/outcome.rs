//! What became of the devices that were taken back.
/// What became of devices, and which steps failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// One line for each device: how it was reset, or that it is in quarantine.
    pub devices: Vec<String>,
    /// Steps that failed.
    pub problems: Vec<String>,
}

impl Released {
    pub(super) fn check<T, E: std::error::Error>(
        &mut self,
        what: std::fmt::Arguments<'_>,
        result: Result<T, E>,
    ) {
        if let Err(error) = result {
            let mut problem = format!("{what}: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                problem.push_str(&format!(": {error}"));
                cause = error.source();
            }
            self.problems.push(problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_told_with_its_causes() {
        let mut released = Released::default();
        let bdf: pci::bdf::Bdf = "00:05.0".parse().unwrap();
        let missing = crate::host::sysfs::Sysfs::at("/nonexistent").open_config(bdf);
        released.check(format_args!("{bdf}: cannot stop it"), missing);
        let problem = &released.problems[0];
        assert!(
            problem.starts_with("0000:00:05.0: cannot stop it: cannot open the configuration space"),
            "{problem}"
        );
        assert!(
            problem.ends_with("No such file or directory (os error 2)"),
            "{problem}"
        );
    }
}
