//! A maker of software TPMs with an authority of its own (`swtpm_localca`), and folders of what it publishes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Node;

/// It and its secrets.
#[derive(Debug)]
pub struct TpmMaker(tempfile::TempDir);

impl TpmMaker {
    /// One that has certified nothing yet.
    ///
    /// # Panics
    /// The test's own files cannot be written.
    pub fn found() -> TpmMaker {
        let maker = TpmMaker(tempfile::tempdir().expect("a temporary directory"));
        let at = |name: &str| maker.path(name).display().to_string();
        let authority = [
            ("statedir", at("authority")),
            ("signingkey", at("authority/signkey.pem")),
            ("issuercert", at("authority/issuercert.pem")),
            ("certserial", at("authority/serial")),
        ];
        let setup = [
            ("create_certs_tool", "/usr/bin/swtpm_localca".to_owned()),
            ("create_certs_tool_config", at("authority.conf")),
            ("create_certs_tool_options", at("options")),
        ];
        let lines = |settings: &[(&str, String)]| -> String {
            settings.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
        };
        for folder in ["authority", "roots"] {
            fs::create_dir(maker.path(folder)).expect("a folder of the test's own");
        }
        for (name, text) in [
            ("authority.conf", lines(&authority)),
            ("setup.conf", lines(&setup)),
            ("options", String::new()),
        ] {
            fs::write(maker.path(name), text).expect("a file of the test's own");
        }
        maker
    }

    /// Puts a TPM of its making in the place of a node's, which is down, and has the node forget the one that it had.
    ///
    /// # Panics
    /// `swtpm_setup` is missing or fails, or the node has had no TPM.
    pub fn supply(&self, node: &Node) {
        let state = tempfile::tempdir_in(self.0.path()).expect("a temporary directory");
        let made = Command::new("swtpm_setup")
            .args(["--tpm2", "--create-ek-cert", "--lock-nvram", "--config"])
            .arg(self.path("setup.conf"))
            .arg("--tpmstate")
            .arg(state.path())
            .output()
            .expect("swtpm_setup runs: .ci/setup installs it (Debian: swtpm-tools)");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        // Into the file that is there: it is the node's software TPM's, which has a user of its own.
        let name = "tpm2-00.permall";
        let made = fs::read(state.path().join(name)).expect("the state of a TPM");
        fs::write(node.directory().join("vats/swtpm").join(name), made).expect("the node's TPM");
        fs::remove_dir_all(node.directory().join("vats/attestation/nodes"))
            .expect("the node has seen its TPM");
    }

    /// A folder with its root, and the certificate between that and those of TPMs.
    ///
    /// # Panics
    /// It has supplied nobody yet: until then it has no root.
    pub fn roots(&self) -> PathBuf {
        let roots = self.path("roots");
        for name in ["swtpm-localca-rootca-cert.pem", "issuercert.pem"] {
            fs::copy(self.path("authority").join(name), roots.join(name)).expect("its root");
        }
        roots
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }
}
