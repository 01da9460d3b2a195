//! Kernel modules: which a module needs, in which order they are loaded, and the lists that `modprobe` reads.
//!
//! Debian's kernel packages come without `modules.dep`, because it is made where they are installed. What goes into
//! it is in the modules themselves, in the section `.modinfo`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use goblin::elf::Elf;

use crate::cpio::Archive;

/// What a module says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Names of the modules that must be loaded before.
    pub depends: Vec<String>,
    /// Patterns of the devices that it drives.
    pub aliases: Vec<String>,
}

impl ModInfo {
    /// Reads the section `.modinfo`: strings `KEY=VALUE`, each ended by a zero byte.
    pub fn parse(section: &[u8]) -> ModInfo {
        let mut info = ModInfo::default();
        for pair in section
            .split(|byte| *byte == 0)
            .filter_map(|bytes| std::str::from_utf8(bytes).ok())
        {
            match pair.split_once('=') {
                Some(("depends", names)) => {
                    info.depends = names
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .map(canonical)
                        .collect();
                }
                Some(("alias", pattern)) => info.aliases.push(pattern.to_owned()),
                _ => {}
            }
        }
        info
    }

    /// Reads a module's file.
    ///
    /// # Errors
    /// It is no ELF file, or has no `.modinfo`.
    pub fn of(module: &[u8]) -> Result<ModInfo> {
        let elf = Elf::parse(module).context("reading the ELF headers")?;
        let section = elf
            .section_headers
            .iter()
            .find(|section| elf.shdr_strtab.get_at(section.sh_name) == Some(".modinfo"))
            .and_then(|section| module.get(section.file_range()?))
            .context("it has no section .modinfo")?;
        Ok(ModInfo::parse(section))
    }
}

/// The one spelling of a module's name: file names have `-` where the kernel has `_`.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// A module ready for an image.
#[derive(Clone, Debug)]
pub struct Module {
    /// Below `/lib/modules/VERSION`, without any suffix of compression.
    path: String,
    content: Vec<u8>,
    info: ModInfo,
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct Modules {
    /// The kernel's version, as `uname -r` gives it.
    pub version: String,
    dir: PathBuf,
    by_name: BTreeMap<String, String>,
    /// The file `modules.builtin`: paths of what is built into the kernel.
    builtin: String,
}

impl Modules {
    /// Lists the modules of the one kernel below an unpacked root.
    ///
    /// # Errors
    /// There is no kernel there, or more than one.
    pub fn of(root: &Path) -> Result<Modules> {
        let dirs: Vec<PathBuf> = ["lib/modules", "usr/lib/modules"]
            .iter()
            .filter_map(|dir| fs::read_dir(root.join(dir)).ok())
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .collect();
        let [dir] = &dirs[..] else {
            return Err(anyhow!(
                "{} kernels below {}: there should be one",
                dirs.len(),
                root.display()
            ));
        };
        let version = dir
            .file_name()
            .and_then(|name| name.to_str())
            .context("a kernel version is text")?;
        let list = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
        };
        let by_name = list("modules.order")?
            .lines()
            .map(|path| (name_of(path), path.to_owned()))
            .collect();
        let builtin = list("modules.builtin")?;
        Ok(Modules {
            version: version.to_owned(),
            dir: dir.clone(),
            by_name,
            builtin,
        })
    }

    /// Whether this kernel has a module of that name, which may be built in.
    pub fn has(&self, name: &str) -> bool {
        let name = canonical(name);
        self.by_name.contains_key(&name) || self.is_builtin(&name)
    }

    fn is_builtin(&self, name: &str) -> bool {
        self.builtin.lines().any(|builtin| name_of(builtin) == name)
    }

    /// The modules named, and those that they need, in an order in which they can be loaded. What is built into
    /// the kernel is passed over.
    ///
    /// # Errors
    /// The kernel has no such module, or it cannot be read.
    pub fn closure(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut order = LoadOrder::default();
        for name in names {
            order.add(&canonical(name), &mut |name| self.load(name))?;
        }
        Ok(order.modules)
    }

    fn load(&self, name: &str) -> Result<Option<Module>> {
        let Some(path) = self.by_name.get(name) else {
            ensure!(
                self.is_builtin(name),
                "kernel {} has no module {name}",
                self.version
            );
            return Ok(None);
        };
        let content = self
            .read(path)
            .with_context(|| format!("reading the module {path}"))?;
        let info = ModInfo::of(&content).with_context(|| format!("reading the module {path}"))?;
        Ok(Some(Module {
            path: path.clone(),
            content,
            info,
        }))
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let plain = self.dir.join(path);
        if plain.exists() {
            return Ok(fs::read(plain)?);
        }
        let packed = fs::read(self.dir.join(format!("{path}.xz")))?;
        let mut content = Vec::new();
        lzma_rust2::XzReader::new(&packed[..], false).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// The module that a file is: `kernel/drivers/xen/xen-evtchn.ko` is `xen_evtchn`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

/// Modules, each after those that it needs.
#[derive(Debug, Default)]
struct LoadOrder {
    modules: Vec<Module>,
    seen: Vec<String>,
}

impl LoadOrder {
    fn add(&mut self, name: &str, load: &mut dyn FnMut(&str) -> Result<Option<Module>>) -> Result<()> {
        if self.seen.iter().any(|seen| seen == name) {
            return Ok(());
        }
        self.seen.push(name.to_owned());
        if let Some(module) = load(name)? {
            for needed in &module.info.depends {
                self.add(needed, load)
                    .with_context(|| format!("needed by {name}"))?;
            }
            self.modules.push(module);
        }
        Ok(())
    }
}

/// Puts modules of a kernel into an archive, with the lists by which `modprobe` finds them.
pub fn install(archive: &mut Archive, kernel: &Modules, modules: &[Module]) {
    let dir = format!("/lib/modules/{}", kernel.version);
    for module in modules {
        archive.file(&format!("{dir}/{}", module.path), 0o644, &module.content);
    }
    for (name, content) in [
        ("modules.dep", &dependencies(modules)),
        ("modules.alias", &aliases(modules)),
        ("modules.builtin", &kernel.builtin),
    ] {
        archive.file(&format!("{dir}/{name}"), 0o644, content.as_bytes());
    }
}

/// `modules.dep`: each module with all that it needs, the first to be loaded last.
fn dependencies(modules: &[Module]) -> String {
    let find = |name: &str| modules.iter().position(|module| name_of(&module.path) == name);
    let mut lines = String::new();
    for module in modules {
        let mut needed = Vec::new();
        let mut open: Vec<usize> = module.info.depends.iter().filter_map(|name| find(name)).collect();
        while let Some(index) = open.pop() {
            if !needed.contains(&index) {
                needed.push(index);
                open.extend(modules[index].info.depends.iter().filter_map(|name| find(name)));
            }
        }
        // The modules are in load order.
        needed.sort_unstable_by(|a, b| b.cmp(a));
        let needed: String = needed
            .into_iter()
            .map(|index| format!(" {}", modules[index].path))
            .collect();
        lines += &format!("{}:{needed}\n", module.path);
    }
    lines
}

/// `modules.alias`: from the patterns of devices to modules.
fn aliases(modules: &[Module]) -> String {
    let mut lines = String::new();
    for module in modules {
        for pattern in &module.info.aliases {
            lines += &format!("alias {pattern} {}\n", name_of(&module.path));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, depends: &[&str]) -> Module {
        Module {
            path: format!("kernel/{name}.ko"),
            content: Vec::new(),
            info: ModInfo {
                depends: depends.iter().map(|name| canonical(name)).collect(),
                aliases: vec![],
            },
        }
    }

    fn load(name: &str) -> Result<Option<Module>> {
        match name {
            "igb" => Ok(Some(module("igb", &["i2c-algo-bit", "ptp", "dca"]))),
            "ptp" => Ok(Some(module("ptp", &["pps_core"]))),
            "i2c_algo_bit" => Ok(Some(module("i2c-algo-bit", &[]))),
            "pps_core" => Ok(Some(module("pps_core", &[]))),
            "dca" => Ok(None),
            _ => Err(anyhow!("no module {name}")),
        }
    }

    fn order(name: &str) -> Result<Vec<Module>> {
        let mut order = LoadOrder::default();
        order.add(name, &mut load)?;
        Ok(order.modules)
    }

    #[test]
    fn a_module_comes_after_those_it_needs_and_builtin_ones_are_passed_over() {
        let paths: Vec<_> = order("igb")
            .expect("all there")
            .into_iter()
            .map(|module| module.path)
            .collect();
        assert_eq!(
            paths,
            [
                "kernel/i2c-algo-bit.ko",
                "kernel/pps_core.ko",
                "kernel/ptp.ko",
                "kernel/igb.ko"
            ]
        );
    }

    #[test]
    fn a_line_of_modules_dep_has_everything_needed_the_first_to_load_last() {
        let lines = dependencies(&order("igb").expect("all there"));
        assert!(
            lines.ends_with("kernel/igb.ko: kernel/ptp.ko kernel/pps_core.ko kernel/i2c-algo-bit.ko\n"),
            "{lines}"
        );
    }

    #[test]
    fn modinfo_gives_dependencies_and_aliases() {
        let info = ModInfo::parse(b"license=GPL\0depends=ptp,i2c-algo-bit\0alias=pci:v1\0alias=pci:v2\0");
        assert_eq!(info.depends, ["ptp", "i2c_algo_bit"]);
        assert_eq!(info.aliases, ["pci:v1", "pci:v2"]);
        assert_eq!(ModInfo::parse(b"depends=\0"), ModInfo::default());
    }

    #[test]
    fn a_missing_module_is_named() {
        let error = order("e1001").expect_err("there is none");
        assert_eq!(error.to_string(), "no module e1001");
    }
}
