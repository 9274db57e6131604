//! Reference integrity manifests: what a maker says that its devices measure, in SWID tags (ISO/IEC 19770-2:2015, with the
//! attributes of the TCG's RIM information model) that are signed with XML signatures.
//!
//! Nothing in a document counts before its signature: one signature, over the whole document, by a certificate that leads
//! to a pinned root. What was read is what was verified: both look at one tree.
//!
//! **Not read**: CoRIM, and documents that refer to others.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use distos_evidence::nvidia::GoldenValues;
use distos_evidence::pki::{self, Anchors, Certificate, Path};
use sha2::{Digest as _, Sha256};
use xml_sec::api::Operation;
use xml_sec::document::XmlDocument;
use xml_sec::policy::{PolicyCompileContext, PolicyCompiler, PolicyProfile};
use xml_sec::provider::RustCryptoProvider;
use xml_sec::xmldsig::{
    SignatureAlgorithm, SignatureRequirement, VerificationKey, VerificationRequest,
};
use xml_sec::{Node, XmlSecurity};

/// The longest document that is looked at, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 1 << 20;
/// How many possible values one measurement may have.
const MAX_ALTERNATIVES: usize = 64;
/// Of a value: SHA-384.
const VALUE_BYTES: usize = 48;
const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const SHA384: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const XML_SIGNATURE: &str = "http://www.w3.org/2000/09/xmldsig#";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";

/// Why a document says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is no SWID tag, or not of the form that this reads.
    #[error("no document of reference values: {0}")]
    Malformed(String),
    /// Its signer's certificate does not lead to a pinned root.
    #[error("whoever signed the document: {0}")]
    Signer(#[from] pki::Refusal),
    /// It is not signed as a whole by whom it names.
    #[error("the document's signature: {0}")]
    Signature(String),
}

/// A document whose signature holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it says.
    pub golden: GoldenValues,
    /// Who signed it.
    pub signer: Path,
}

impl Manifest {
    /// Reads a document and checks its signature.
    pub fn verify(document: &[u8], anchors: Anchors<'_>) -> Result<Manifest, Refusal> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(malformed(format!("it has more than {MAX_DOCUMENT_BYTES} bytes")));
        }
        let text = std::str::from_utf8(document).map_err(malformed)?;
        let provider = RustCryptoProvider;
        let context = PolicyCompileContext { external_resources: false, target_evidence: true };
        let policies = PolicyCompiler::new(PolicyProfile::Modern, &provider, None)
            .and_then(|compiler| compiler.compile(&context))
            .map_err(malformed)?;
        let security = XmlSecurity::new(&policies, &provider).map_err(malformed)?;
        let tree = security.parse_document(text, Operation::Verify).map_err(malformed)?;
        let chain = tree.with_view(|view| chain_of(view.document().root_element()))?;
        let signer = Path::find(&chain[0], &chain[1..], anchors, None)?;
        let key = VerificationKey {
            algorithm: SignatureAlgorithm::EcdsaSha384,
            public_key_bytes: chain[0].spki(),
            certificate_der: None,
            name: None,
        };
        let whole = tree.with_view(|view| view.root_element());
        let request = VerificationRequest {
            expected_targets: &[whole],
            signatures: SignatureRequirement::Exactly(1),
            ..VerificationRequest::default()
        };
        let wrong = |why: String| Refusal::Signature(why);
        let verifier = security.verifier().map_err(|e| wrong(e.to_string()))?.key(&key);
        let evidence = verifier.verify(&tree, &request).map_err(|e| wrong(e.to_string()))?;
        if !evidence.accepted(&tree).map_err(|e| wrong(e.to_string()))? {
            return Err(wrong("it does not hold for the whole document".to_owned()));
        }
        Ok(Manifest { golden: golden_of(&tree, document)?, signer })
    }
}

fn malformed(why: impl ToString) -> Refusal {
    Refusal::Malformed(why.to_string())
}

/// The signer's certificates, from its own on. The one signature is a child of the root, and of the one algorithm.
fn chain_of(root: Node<'_, '_>) -> Result<Vec<Certificate>, Refusal> {
    if !root.has_tag_name((SWID, "SoftwareIdentity")) {
        return Err(malformed("the root is no SoftwareIdentity"));
    }
    let signature = only(root, (XML_SIGNATURE, "Signature"))?;
    let info = only(signature, (XML_SIGNATURE, "SignedInfo"))?;
    let method = only(info, (XML_SIGNATURE, "SignatureMethod"))?;
    if method.attribute("Algorithm") != Some(ECDSA_SHA384) {
        return Err(malformed("it is not signed with ECDSA and SHA-384"));
    }
    let key = only(signature, (XML_SIGNATURE, "KeyInfo"))?;
    let data = only(key, (XML_SIGNATURE, "X509Data"))?;
    let mut chain = Vec::new();
    for one in data.children().filter(|n| n.has_tag_name((XML_SIGNATURE, "X509Certificate"))) {
        if chain.len() == pki::MAX_CERTIFICATES {
            return Err(malformed("it has too many certificates"));
        }
        let text: String = one.text().unwrap_or_default().split_ascii_whitespace().collect();
        let der = STANDARD.decode(text).map_err(malformed)?;
        chain.push(Certificate::from_der(&der)?);
    }
    if chain.is_empty() {
        return Err(malformed("it names no certificate of its signer"));
    }
    Ok(chain)
}

fn golden_of(tree: &XmlDocument, document: &[u8]) -> Result<GoldenValues, Refusal> {
    tree.with_view(|view| {
        let root = view.document().root_element();
        let meta = only(root, (SWID, "Meta"))?;
        let payload = only(root, (SWID, "Payload"))?;
        let mut values = BTreeMap::new();
        for resource in payload.children().filter(|n| n.has_tag_name((SWID, "Resource"))) {
            if required(resource, "type")? != "Measurement" {
                continue;
            }
            let index: u8 = number(resource, "index")?;
            match required(resource, "active")? {
                "False" => continue,
                "True" => {}
                other => return Err(malformed(format!("measurement {index} is active: {other}"))),
            }
            if values.insert(index, alternatives(resource, index)?).is_some() {
                return Err(malformed(format!("measurement {index} is there twice")));
            }
        }
        Ok(GoldenValues {
            product: required(meta, "product")?.to_owned(),
            version: required(meta, "colloquialVersion")?.to_owned(),
            values,
            digest: Sha256::digest(document).into(),
        })
    })
}

fn alternatives(resource: Node<'_, '_>, index: u8) -> Result<Vec<Vec<u8>>, Refusal> {
    let wrong = |why: String| malformed(format!("measurement {index}: {why}"));
    let count: usize = number(resource, "alternatives")?;
    if !(1..=MAX_ALTERNATIVES).contains(&count) {
        return Err(wrong(format!("it has {count} alternatives")));
    }
    (0..count)
        .map(|at| {
            let name = format!("Hash{at}");
            let text = resource.attribute((SHA384, name.as_str()));
            let text = text.ok_or_else(|| wrong(format!("it has no {name}")))?;
            let value = hex::decode(text).map_err(|e| wrong(e.to_string()))?;
            let is_whole = value.len() == VALUE_BYTES;
            is_whole.then_some(value).ok_or_else(|| wrong(format!("{name} is no SHA-384")))
        })
        .collect()
}

/// The child of that name, if it is the only one.
fn only<'a, 'd>(parent: Node<'a, 'd>, name: (&str, &str)) -> Result<Node<'a, 'd>, Refusal> {
    let mut found = parent.children().filter(|child| child.has_tag_name(name));
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(malformed(format!("there is not exactly one {}", name.1))),
    }
}

fn required<'a>(node: Node<'a, '_>, name: &str) -> Result<&'a str, Refusal> {
    node.attribute(name).ok_or_else(|| malformed(format!("something has no {name}")))
}

fn number<T: std::str::FromStr>(node: Node<'_, '_>, name: &str) -> Result<T, Refusal> {
    required(node, name)?.parse().map_err(|_| malformed(format!("{name} is no such number")))
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
#[cfg(test)]
pub(crate) use tests::read as real;
