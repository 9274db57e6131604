//! runc: a container for each task, as a scheduler of containers runs it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// A bundle with one static program in it.
pub struct Peer {
    bundle: PathBuf,
    state: PathBuf,
    runs: u32,
}

impl Peer {
    /// Compiles `source` statically and makes a bundle of it in `directory`.
    pub fn new(directory: &Path, source: &Path, args: &[&str]) -> Result<Peer, Failure> {
        let (bundle, state) = (directory.join("bundle"), directory.join("state"));
        fs::create_dir_all(bundle.join("rootfs"))?;
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-static", "-o"]).arg(bundle.join("rootfs/program")).arg(source);
        must(&mut cc)?;
        let mut spec = Command::new("runc");
        spec.arg("spec").arg("--bundle").arg(&bundle);
        if !distos_e2e::is_root() {
            spec.arg("--rootless");
        }
        must(&mut spec)?;
        let path = bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!([&["/program"], args].concat());
        fs::write(&path, serde_json::to_vec(&config)?)?;
        Ok(Peer { bundle, state, runs: 0 })
    }

    /// Runs it once with this file as its standard input; what it printed.
    pub fn run(&mut self, input: &Path) -> Result<Vec<u8>, Failure> {
        self.runs += 1;
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(&self.state).arg("run").arg("--bundle").arg(&self.bundle);
        runc.arg(format!("distos-bench-{}-{}", std::process::id(), self.runs));
        must(runc.stdin(File::open(input)?))
    }
}

type Failure = Box<dyn std::error::Error>;

fn must(command: &mut Command) -> Result<Vec<u8>, Failure> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}: run `make bench`"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(output.stdout)
}
