//! The machine's GPUs, through NVIDIA's management library, which is loaded at run time: a machine
//! without it boots and says so.

use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};

use nvml_wrapper::enums::device::DeviceArchitecture;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use crate::evidence::{Shown, Signed};
use crate::state::Reading;

/// What the dynamic linker looks for unless the image's setting `nvml` says otherwise.
pub(crate) const LIBRARY: &str = "libnvidia-ml.so.1";
/// More GPUs than this in one machine are not looked at.
const MAX_GPUS: u32 = 64;

/// What does not change about one GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) name: String,
    pub(crate) uuid: String,
    pub(crate) memory_bytes: u64,
}

/// The GPUs of this machine.
pub(crate) struct Machine {
    nvml: Option<Nvml>,
    /// The driver and its version, or "no GPU: …".
    pub(crate) driver: String,
    /// By index.
    pub(crate) gpus: Vec<Description>,
}

impl Machine {
    /// Loads `library` and asks it what there is. Never fails: what is wrong is in `driver`.
    pub(crate) fn probe(library: &str) -> Machine {
        let found = Nvml::builder().lib_path(OsStr::new(library)).init().and_then(|nvml| {
            let (driver, gpus) = describe(&nvml)?;
            Ok((nvml, driver, gpus))
        });
        match found {
            Ok((nvml, driver, gpus)) if !gpus.is_empty() => {
                Machine { nvml: Some(nvml), driver: format!("NVIDIA {driver}"), gpus }
            }
            Ok((_, driver, _)) => Machine::without(format!("NVIDIA {driver} finds none")),
            Err(error) => Machine::without(why(library, &error)),
        }
    }

    fn without(why: String) -> Machine {
        Machine { nvml: None, driver: format!("no GPU: {why}"), gpus: Vec::new() }
    }

    /// Looks at one GPU. The processes are those that the driver shows to this process: it may
    /// hide those of other PID namespaces, so that memory in use is the stronger sign.
    pub(crate) fn read(&self, index: u32) -> Result<Reading, String> {
        let nvml = self.nvml.as_ref().ok_or("there is no GPU")?;
        let read = || -> Result<Reading, NvmlError> {
            let device = nvml.device_by_index(index)?;
            let computing = device.running_compute_processes()?.len();
            let drawing = match device.running_graphics_processes() {
                // GPUs that cannot draw do not count those that do.
                Err(NvmlError::NotSupported) => 0,
                drawing => drawing?.len(),
            };
            let processes = (computing + drawing) as u64;
            Ok(Reading { processes, used_bytes: device.memory_info()?.used })
        };
        read().map_err(|e| e.to_string())
    }

    /// Has one GPU sign what it measured, with this nonce. It takes the time that the GPU takes.
    pub(crate) fn evidence(&self, index: u32, nonce: [u8; 32]) -> Shown {
        let device = self.nvml.as_ref().map(|nvml| nvml.device_by_index(index));
        let device = match device {
            Some(Ok(device)) => device,
            Some(Err(error)) => return Shown::nothing(error.to_string()),
            None => return Shown::nothing("there is no GPU".to_owned()),
        };
        let arch = match device.architecture() {
            // What the driver has no name for, evidence has none for either.
            Err(_) | Ok(DeviceArchitecture::Unknown) => String::new(),
            Ok(architecture) => format!("{architecture:?}").to_uppercase(),
        };
        // The wrapper takes what the library says that it wrote as the length of a slice of what there was room for, which
        // panics if it is more. Nothing of ours is changed in between.
        let signed = catch_unwind(AssertUnwindSafe(|| sign(&device, nonce)));
        let signed = match signed {
            Ok(signed) => signed.map_err(|error| error.to_string()),
            Err(_) => Err("the library says that it wrote more than there is room for".to_owned()),
        };
        Shown { arch, mode: mode(&device).unwrap_or_default(), signed }
    }
}

/// The chain is the second of the two that the library has: the one of the key that signs reports. The report is the
/// request and the response to it, in one.
fn sign(device: &Device<'_>, nonce: [u8; 32]) -> Result<Signed, NvmlError> {
    let report = device.confidential_compute_gpu_attestation_report(nonce)?.attestation_report;
    let chain = device.confidential_compute_gpu_certificate()?.attestation_cert_chain;
    Ok(Signed { chain, report })
}

/// What the driver says of confidential computing. Older drivers, and GPUs that know nothing of it, say nothing.
fn mode(device: &Device<'_>) -> Result<&'static str, NvmlError> {
    Ok(match (device.is_cc_enabled()?, device.is_cc_dev_mode_enabled()?) {
        (false, _) => "off",
        (true, true) => "devtools",
        (true, false) => "on",
    })
}

fn describe(nvml: &Nvml) -> Result<(String, Vec<Description>), NvmlError> {
    let describe_one = |device: Device<'_>| {
        Ok(Description {
            name: device.name()?,
            uuid: device.uuid()?,
            memory_bytes: device.memory_info()?.total,
        })
    };
    let count = nvml.device_count()?.min(MAX_GPUS);
    let gpus = (0..count).map(|index| nvml.device_by_index(index).and_then(describe_one));
    Ok((nvml.sys_driver_version()?, gpus.collect::<Result<_, NvmlError>>()?))
}

fn why(library: &str, error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(e) if e.to_string().contains("No such file") => {
            format!("{library} was not found")
        }
        NvmlError::LibloadingError(e) => format!("{library} could not be loaded: {e}"),
        NvmlError::DriverNotLoaded => "the NVIDIA driver is not loaded".into(),
        error => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn a_machine_without_a_gpu_says_so() {
        let machine = Machine::probe("libdistos-no-such-library.so.1");
        assert_eq!(machine.driver, "no GPU: libdistos-no-such-library.so.1 was not found");
        assert!(machine.gpus.is_empty());
        assert!(machine.read(0).is_err());
    }

    #[test]
    fn a_file_that_is_no_library_is_not_taken_for_a_missing_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nvml.so");
        fs::write(&path, "text").unwrap();
        let driver = Machine::probe(path.to_str().unwrap()).driver;
        assert!(
            driver.starts_with("no GPU: ") && driver.contains("could not be loaded"),
            "{driver}"
        );
    }

    #[test]
    fn a_gpu_that_does_not_attest_itself_says_why_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let machine = fake(dir.path(), "1 0 0");
        let shown = machine.evidence(0, NONCE);
        assert_eq!((shown.arch.as_str(), shown.mode), ("HOPPER", ""));
        assert!(shown.signed.unwrap_err().contains("not available"));
        for (says, mode) in [("off", "off"), ("silent", "on")] {
            fs::write(dir.path().join("state"), format!("1 0 0 {says}")).unwrap();
            let shown = machine.evidence(0, NONCE);
            assert_eq!(shown.mode, mode);
            assert!(shown.signed.is_err(), "{says}");
        }
        assert!(machine.evidence(1, NONCE).signed.is_err(), "there is no such GPU");
        let none = Machine::probe("libdistos-no-such-library.so.1");
        assert!(none.evidence(0, NONCE).signed.is_err());
    }

    #[test]
    fn a_gpu_is_asked_with_the_nonce_and_its_answer_and_chain_are_handed_on_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let machine = fake(dir.path(), "2 0 0 on");
        fs::write(dir.path().join("chain-1"), "a chain").unwrap();
        fs::write(dir.path().join(format!("report-1-{}", "ab".repeat(32))), "a report").unwrap();
        let shown = machine.evidence(1, NONCE);
        let signed = Signed { chain: b"a chain".to_vec(), report: b"a report".to_vec() };
        assert_eq!(shown, Shown { arch: "HOPPER".to_owned(), mode: "on", signed: Ok(signed) });
        fs::write(dir.path().join("state"), "2 0 0 devtools").unwrap();
        assert_eq!(machine.evidence(1, NONCE).mode, "devtools", "it is asked anew");
    }

    /// Else it is read past the end of what the library was given.
    #[test]
    fn a_library_that_claims_more_than_there_is_room_for_gets_nothing_read() {
        let dir = tempfile::tempdir().unwrap();
        let shown = fake(dir.path(), "1 0 0 oversized").evidence(0, NONCE);
        assert!(shown.signed.unwrap_err().contains("more than there is room for"));
    }

    const NONCE: [u8; 32] = [0xab; 32];

    /// Builds the stand-in for NVIDIA's library, which reads what to pretend from a file.
    fn fake(dir: &Path, says: &str) -> Machine {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-nvml/nvml.c");
        let (library, state) = (dir.join("libnvidia-ml.so.1"), dir.join("state"));
        fs::write(&state, says).unwrap();
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(format!("-DDIRECTORY=\"{}\"", dir.display()))
            .arg(source)
            .status()
            .unwrap();
        assert!(built.success());
        Machine::probe(library.to_str().unwrap())
    }

    #[test]
    fn a_gpu_is_described_and_read_as_the_driver_says() {
        let dir = tempfile::tempdir().unwrap();
        let machine = fake(dir.path(), "2 0 1048576");
        assert_eq!(machine.driver, "NVIDIA 550.54.15");
        assert_eq!(machine.gpus.len(), 2);
        assert_eq!(machine.gpus[1].name, "Fake GPU 1");
        assert_eq!(machine.gpus[1].uuid, "GPU-00000000-fake-1");
        assert_eq!(machine.gpus[1].memory_bytes, 1 << 34);
        assert_eq!(machine.read(1), Ok(Reading { processes: 0, used_bytes: 1 << 20 }));
        fs::write(dir.path().join("state"), "2 3 5000").unwrap();
        assert_eq!(machine.read(0), Ok(Reading { processes: 3, used_bytes: 5000 }));
        // The GPU falls off the bus.
        fs::write(dir.path().join("state"), "0 0 0").unwrap();
        assert!(machine.read(0).is_err());
    }

    #[test]
    fn a_driver_without_gpus_is_no_gpu() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(fake(dir.path(), "0 0 0").driver, "no GPU: NVIDIA 550.54.15 finds none");
    }
}
