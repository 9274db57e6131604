//! What the image sets.

use std::path::PathBuf;

use distos_abi::{Fault, HolderKey};
use distos_evidence::devices::DEVICES_PCR;
use distos_evidence::evidence::PcrSet;
use distos_evidence::ima::IMA_PCR;
use distos_evidence::joining::IMAGE_PCR;
use distos_rpc::Vat;

use crate::governing::Given;
use crate::state::Bounds;

const DEFAULT_FRESHNESS_MS: u64 = 300_000;
/// The firmware's registers on a PC; the image's is always added, and the kernel's if its list is there.
const DEFAULT_PCRS: &str = "0-7";
/// The devices by which the image gives the service the logs of the boot and of the kernel's measured files.
pub(crate) const BOOT: &str = "boot-log";
pub(crate) const FILES: &str = "measured-files";

/// The setting that names the edge to the service of the machine's GPUs; without it they are not asked.
pub(crate) const GPUS: &str = "gpus";

/// What the image sets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) hardware: bool,
    pub(crate) bounds: Bounds,
    /// The node image's, to be measured; there is none without a TPM.
    pub(crate) image_hash: Option<[u8; 32]>,
    pub(crate) pcrs: PcrSet,
    pub(crate) data_dir: PathBuf,
    pub(crate) given: Given,
}

impl Settings {
    /// Reads the settings; [`Fault::Malformed`] names the one that is missing or wrong.
    pub(crate) fn of(vat: &Vat) -> Result<Settings, Fault> {
        let data_dir = vat.data_dir().map(PathBuf::from);
        Settings::parse(|key| vat.param(key), data_dir)
    }

    pub(crate) fn parse<'a>(
        param: impl Fn(&str) -> Option<&'a str>,
        data_dir: Option<PathBuf>,
    ) -> Result<Settings, Fault> {
        let wrong = |key: &str, what: &str| {
            Fault::malformed(format!("attestation: setting '{key}' {what}"))
        };
        let hardware = match param("tpm") {
            Some("hardware") => true,
            // Without a label the weaker claim is made.
            Some("software") | None => false,
            Some(_) => return Err(wrong("tpm", "is neither 'hardware' nor 'software'")),
        };
        let ms = |key: &str, default: u64| match param(key) {
            None => Ok(default),
            Some(text) => text.parse().map_err(|_| wrong(key, "is no number of milliseconds")),
        };
        let fresh_ms = ms("freshness_ms", DEFAULT_FRESHNESS_MS)?;
        let bounds = Bounds { fresh_ms, grace_ms: ms("grace_ms", fresh_ms)? };
        let image_hash = match param("image_hash") {
            None => None,
            Some(text) => {
                let mut hash = [0u8; 32];
                hex::decode_to_slice(text, &mut hash)
                    .map_err(|_| wrong("image_hash", "is not 64 hexadecimal digits"))?;
                Some(hash)
            }
        };
        let pcrs = PcrSet::parse(param("pcrs").unwrap_or(DEFAULT_PCRS))?.with(IMAGE_PCR);
        // Its value is what the kernel's list is held against.
        let pcrs = if param(FILES).is_some() { pcrs.with(IMA_PCR) } else { pcrs };
        let data_dir =
            data_dir.ok_or_else(|| Fault::malformed("attestation: its vat needs 'data = true'"))?;
        let text = |key: &str| param(key).unwrap_or_default().to_owned();
        let signers = text("policy_signers");
        let signers = signers.split_whitespace().map(|key| {
            let key = hex::decode(key).ok().and_then(|key| HolderKey::try_from(&key[..]).ok());
            key.ok_or_else(|| {
                wrong("policy_signers", "has a word that is no key: 64 hexadecimal digits")
            })
        });
        let signers = signers.collect::<Result<_, _>>()?;
        let given = Given { policy: text("policy"), signature: text("policy_signature"), signers };
        Ok(Settings { hardware, bounds, image_hash, pcrs, data_dir, given })
    }

    /// The registers that nodes are asked for: beside those, the one that holds on to their devices.
    pub(crate) fn asked(&self) -> PcrSet {
        self.pcrs.with(DEVICES_PCR)
    }

    /// What kind of TPM it is, for people.
    pub(crate) fn label(&self, present: bool) -> &'static str {
        match (present, self.hardware) {
            (false, _) => "no TPM",
            (true, true) => "hardware TPM /dev/tpmrm0",
            (true, false) => "software TPM (swtpm): proves the protocol, not the machine",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn parse(params: &[(&'static str, &'static str)]) -> Result<Settings, Fault> {
        let params = params.to_vec();
        let param =
            move |key: &str| params.iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        Settings::parse(param, Some("/data".into()))
    }

    pub(crate) const HASH: &str =
        "aabbccddeeff00112233445566778899aabbccddeeff00112233445566778899";

    #[test]
    fn a_wrong_setting_is_named() {
        for (params, key) in [
            (vec![("image_hash", "aa")], "image_hash"),
            (vec![("image_hash", HASH), ("tpm", "real")], "tpm"),
            (vec![("image_hash", HASH), ("freshness_ms", "5s")], "freshness_ms"),
            (vec![("image_hash", HASH), ("pcrs", "99")], "99"),
        ] {
            let fault = parse(&params).unwrap_err();
            assert!(matches!(&fault, Fault::Malformed(why) if why.contains(key)), "{fault}");
        }
    }

    #[test]
    fn a_tpm_without_a_label_counts_as_software() {
        let settings = parse(&[("image_hash", HASH)]).unwrap();
        assert!(settings.label(true).starts_with("software"));
        assert_eq!(settings.label(false), "no TPM");
        let hardware = parse(&[("image_hash", HASH), ("tpm", "hardware")]).unwrap();
        assert!(hardware.label(true).starts_with("hardware"));
    }
}
