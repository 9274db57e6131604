//! The GPU service: lends whole GPUs to tenants, one at a time, and lends none on before it has
//! seen it idle again (G1).
//!
//! What it holds: NVIDIA's management library (NVML), loaded at run time, if the machine has one; a
//! directory in which it notes what each GPU uses when idle; no other service and no tenant's data. What it serves: the list of GPUs and leases on them.
//! What it refuses: a GPU that is leased, being cleaned or quarantined.
//!
//! It also has each GPU sign what it measured, for whoever may ask ([`distos_schemas::gpu_capnp`]). It verifies nothing
//! of that: whoever asked does. Switches are not asked: NVML does not reach them.
//!
//! What cleaning is, and is not. NVML can show that a GPU runs no process and that its memory in
//! use is back where it was when nobody held it; a GPU of which that cannot be shown is
//! quarantined. NVML cannot overwrite a GPU's memory. That a new process finds no bytes of an
//! earlier one is the NVIDIA driver's own promise, which this service does not verify. It can also
//! neither stop a process that stays on a GPU after its lease, nor keep one without a lease away
//! from the device nodes: both are the work of whoever starts processes.
#![forbid(unsafe_code)]

mod evidence;
mod nvml;
mod seen;
mod server;
mod state;

pub use server::run;
