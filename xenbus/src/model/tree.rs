//! The nodes of the model xenstored.

use crate::path;
use crate::permission::{Access, Permission};
use crate::wire::{self, ErrorName};
use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// A node that changed.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) path: String,
    /// Only watches on this very node are concerned: it went along with one above it.
    exact: bool,
}

impl Change {
    pub(super) fn at(path: &str) -> Self {
        Self {
            path: path.to_owned(),
            exact: false,
        }
    }

    pub(super) fn concerns(&self, watched: &str) -> bool {
        self.path == watched || (!self.exact && is_below(watched, &self.path))
    }
}

#[derive(Clone, Debug)]
struct Node {
    value: Vec<u8>,
    permissions: Vec<Permission>,
}

/// All nodes by absolute path. The root is always there.
#[derive(Clone, Debug)]
pub(super) struct Tree(BTreeMap<String, Node>);

impl Default for Tree {
    fn default() -> Self {
        let permissions = vec![Permission {
            domid: 0,
            access: Access::Read,
        }];
        Self(BTreeMap::from([(
            "/".to_owned(),
            Node {
                value: Vec::new(),
                permissions,
            },
        )]))
    }
}

impl Tree {
    pub(super) fn make_home(&mut self, domid: u16) {
        let home = path::home(domid);
        // Domain 0 may make any node.
        let _ = self.make(0, &home);
        if let Some(node) = self.0.get_mut(&home) {
            node.permissions = vec![Permission {
                domid,
                access: Access::Read,
            }];
        }
    }

    pub(super) fn read(&self, domid: u16, name: &str) -> Result<Vec<u8>, ErrorName> {
        self.reachable(domid, name, Access::Read)
            .map(|node| node.value.clone())
    }

    pub(super) fn list(&self, domid: u16, name: &str) -> Result<Vec<String>, ErrorName> {
        self.reachable(domid, name, Access::Read)?;
        let children = self
            .0
            .keys()
            .filter(|child| child.as_str() != "/" && parent(child) == name);
        Ok(children
            .filter_map(|child| child.rsplit('/').next())
            .map(str::to_owned)
            .collect())
    }

    pub(super) fn permissions(&self, domid: u16, name: &str) -> Result<Vec<Permission>, ErrorName> {
        self.reachable(domid, name, Access::Read)
            .map(|node| node.permissions.clone())
    }

    pub(super) fn write(
        &mut self,
        domid: u16,
        name: &str,
        value: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, ErrorName> {
        self.make(domid, name)?.value = value.to_owned();
        changes.push(Change::at(name));
        ok()
    }

    pub(super) fn mkdir(
        &mut self,
        domid: u16,
        name: &str,
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, ErrorName> {
        if !self.0.contains_key(name) {
            self.make(domid, name)?;
            changes.push(Change::at(name));
        }
        ok()
    }

    pub(super) fn remove(
        &mut self,
        domid: u16,
        name: &str,
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, ErrorName> {
        if name == "/" {
            return Err(ErrorName::Einval);
        }
        if !self.0.contains_key(name) {
            self.reachable(domid, parent(name), Access::Write)?;
            return ok();
        }
        self.reachable(domid, name, Access::Write)?;
        changes.push(Change::at(name));
        let below = self.0.keys().filter(|path| *path != name && is_below(name, path));
        changes.extend(below.map(|path| Change {
            path: path.clone(),
            exact: true,
        }));
        self.0.retain(|path, _| path != name && !is_below(name, path));
        ok()
    }

    pub(super) fn set_permissions(
        &mut self,
        domid: u16,
        name: &str,
        list: &[u8],
        changes: &mut Vec<Change>,
    ) -> Result<Vec<u8>, ErrorName> {
        self.reachable(domid, name, Access::Write)?;
        let list = wire::decode_texts(list).map_err(|_| ErrorName::Einval)?;
        let list: Result<Vec<Permission>, _> = list.iter().map(|text| text.parse()).collect();
        let list = list.map_err(|_| ErrorName::Einval)?;
        let node = self.0.get_mut(name).ok_or(ErrorName::Enoent)?;
        let owner = node.permissions[0].domid;
        match list.first() {
            None => return Err(ErrorName::Einval),
            Some(_) if domid != 0 && domid != owner => return Err(ErrorName::Eacces),
            Some(first) if domid != 0 && first.domid != owner => return Err(ErrorName::Eperm),
            Some(_) => node.permissions = list,
        }
        changes.push(Change::at(name));
        ok()
    }

    /// The node, made with its parents if it is missing; new ones inherit the permissions above.
    fn make(&mut self, domid: u16, name: &str) -> Result<&mut Node, ErrorName> {
        if self.0.contains_key(name) {
            self.reachable(domid, name, Access::Write)?;
        } else {
            let above = parent(name);
            let mut permissions = self.make(domid, above)?.permissions.clone();
            // A domain owns what it makes; what domain 0 makes belongs to the owner above.
            if domid != 0 {
                permissions[0].domid = domid;
            }
            self.0.insert(
                name.to_owned(),
                Node {
                    value: Vec::new(),
                    permissions,
                },
            );
        }
        self.0.get_mut(name).ok_or(ErrorName::Enoent)
    }

    /// The node, if `domid` may access it. Without a right to read, a missing node looks like a forbidden one.
    fn reachable(&self, domid: u16, name: &str, wanted: Access) -> Result<&Node, ErrorName> {
        let Some(node) = self.0.get(name) else {
            let mut above = parent(name);
            while !self.0.contains_key(above) {
                above = parent(above);
            }
            let visible = self
                .0
                .get(above)
                .is_some_and(|node| allows(domid, node, Access::Read));
            return Err(if visible {
                ErrorName::Enoent
            } else {
                ErrorName::Eacces
            });
        };
        if allows(domid, node, wanted) {
            Ok(node)
        } else {
            Err(ErrorName::Eacces)
        }
    }
}

fn allows(domid: u16, node: &Node, wanted: Access) -> bool {
    let owner = node.permissions[0];
    let access = node.permissions[1..]
        .iter()
        .find(|permission| permission.domid == domid)
        .map_or(owner.access, |permission| permission.access);
    domid == 0 || domid == owner.domid || access == wanted || access == Access::Both
}

fn parent(name: &str) -> &str {
    match name.rfind('/') {
        Some(0) | None => "/",
        Some(at) => &name[..at],
    }
}

/// True if `path` lies below `top`.
fn is_below(top: &str, path: &str) -> bool {
    top == "/" || path.strip_prefix(top).is_some_and(|rest| rest.starts_with('/'))
}

fn ok() -> Result<Vec<u8>, ErrorName> {
    Ok(b"OK\0".into())
}
