//! `did:key`: a key as a decentralised identifier, and the document that it stands for. Nobody has
//! to be asked: the document follows from the key.
//!
//! Source: the W3C CCG's did:key method, for Ed25519 (multicodec 0xed).

use distos_abi::{Fault, HolderKey, NodeId};
use serde_json::{Value, json};

const METHOD: &str = "did:key:";
/// Base58 with Bitcoin's alphabet, in multibase.
const BASE58: char = 'z';
/// Ed25519 public keys, in multicodec, as a varint.
const ED25519: [u8; 2] = [0xed, 0x01];
/// The longest that a key of 34 bytes becomes in base58, with its prefix.
const MAX_MULTIBASE_BYTES: usize = 48;

/// The key as `did:key` writes it behind the method's name: `z6Mk…`.
pub fn multibase(key: HolderKey) -> String {
    let mut bytes = ED25519.to_vec();
    bytes.extend(key.0);
    format!("{BASE58}{}", bs58::encode(bytes).into_string())
}

/// Reads [`multibase`]. [`Fault::Malformed`] for everything else, other encodings of the same key
/// too.
pub fn parse_multibase(text: &str) -> Result<HolderKey, Fault> {
    let wrong = || Fault::malformed("this is no Ed25519 key of did:key: z6Mk…");
    let digits = text.strip_prefix(BASE58).filter(|_| text.len() <= MAX_MULTIBASE_BYTES);
    let bytes = bs58::decode(digits.ok_or_else(wrong)?).into_vec().map_err(|_| wrong())?;
    let key = bytes.strip_prefix(&ED25519).and_then(|key| key.try_into().ok()).ok_or_else(wrong)?;
    let key = HolderKey(key);
    if multibase(key) != text {
        return Err(wrong());
    }
    Ok(key)
}

/// The DID of an agent.
pub fn of_agent(key: HolderKey) -> String {
    format!("{METHOD}{}", multibase(key))
}

/// The DID of a node: of its kernel's key.
pub fn of_node(node: NodeId) -> String {
    of_agent(HolderKey(node.0))
}

/// Reads a DID of Ed25519. [`Fault::Malformed`] for everything else.
pub fn parse(text: &str) -> Result<HolderKey, Fault> {
    let key = text.strip_prefix(METHOD).ok_or_else(|| Fault::malformed("no did:key"))?;
    parse_multibase(key)
}

/// The DID document of a key (DID Core, with the Multikey verification method): it proves who
/// somebody is, and signs for itself and for what it delegates.
pub fn document(key: HolderKey) -> Value {
    let (did, key) = (of_agent(key), multibase(key));
    let method = format!("{did}#{key}");
    json!({
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/security/multikey/v1"],
        "id": did,
        "verificationMethod": [{
            "id": method,
            "type": "Multikey",
            "controller": did,
            "publicKeyMultibase": key,
        }],
        "authentication": [method],
        "assertionMethod": [method],
        "capabilityDelegation": [method],
        "capabilityInvocation": [method],
    })
}

/// The DID document of a node that is known by a TPM: [`document`] of its kernel's key, and as another name of the same
/// (`alsoKnownAs`, DID Core, 5.1.3) that of the TPM's endorsement key, `urn:distos:tpm-ek:` and hexadecimal. Whoever makes it
/// has had the TPM show that it has that key.
pub fn document_of_node(node: NodeId, ek_name: &[u8]) -> Value {
    let mut document = document(HolderKey(node.0));
    document["alsoKnownAs"] = json!([format!("urn:distos:tpm-ek:{}", hex::encode(ek_name))]);
    document
}

#[cfg(test)]
mod tests {
    use distos_types::HolderSecret;

    use super::*;

    /// The method's own first test vector: the seed is 32 zeros.
    const VECTOR: &str = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";

    #[test]
    fn other_programs_know_the_same_key_by_the_same_did() {
        let key = HolderSecret::from_seed([0; 32]).key();
        assert_eq!(of_agent(key), VECTOR);
        assert_eq!(parse(VECTOR), Ok(key));
        let document = document(key);
        assert_eq!(document["id"], VECTOR);
        assert_eq!(document["verificationMethod"][0]["controller"], VECTOR);
        assert_eq!(document["capabilityInvocation"][0], document["verificationMethod"][0]["id"]);
    }

    #[test]
    fn a_nodes_document_names_the_tpm_by_which_it_is_known() {
        let document = document_of_node(NodeId([1; 32]), &[0, 11, 0xab]);
        assert_eq!(document["id"], of_node(NodeId([1; 32])));
        assert_eq!(document["alsoKnownAs"], json!(["urn:distos:tpm-ek:000bab"]));
    }

    #[test]
    fn a_key_of_another_kind_or_spelling_is_refused() {
        let long = format!("did:key:z{}", "1".repeat(4096));
        // secp256k1, X25519, P-256; a leading zero; another method; a tail.
        for bad in [
            "did:key:zQ3shokFTS3brHcDQrn82RUDfCZESWL1ZdCEJwekUDPQiYBme",
            "did:key:z6LSbysY2xFMRpGMhb7tFTLMpeuPRaqaWM1yECx2AtzE3KCc",
            "did:key:zDnaerDaTF5BXEavCrfRZEk316dpbLsfPDZ3WJ5hRTPFU2169",
            "did:key:z16MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp",
            "did:web:example.com",
            "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp#x",
            "did:key:",
            "",
            &long,
        ] {
            assert_eq!(parse(bad).unwrap_err().code(), 16, "{bad}");
        }
    }
}
