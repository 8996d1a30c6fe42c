//! Processes, whoever they belong to: started, found, signalled, ended, and held in control groups.
//!
//! [`launch`] is the step between fork and a program; [`reach`] finds out what an account reaches; [`handle`] a process that is known by a
//! descriptor; [`descendants`] what a process started and leaves behind; [`cgroup`] control groups; [`strays`] those that nothing
//! knows of after a crash; [`resources`] what the kernel lets a process have; [`stat`], [`environ`] and [`disposition`] what it says of
//! one; [`program`] whether a file can be executed, [`installed`] the installed program, wherever it is by now; [`caller`] the process at the other end of a Unix socket. The room knows no component, no release and no bus.

pub(crate) mod caller;
pub mod cgroup;
pub(crate) mod descendants;
pub(crate) mod disposition;
pub(crate) mod environ;
pub(crate) mod handle;
pub mod installed;
pub mod launch;
pub mod program;
pub mod reach;
pub mod resources;
pub(crate) mod stat;
pub(crate) mod strays;
