//! Images and the rig.
