//! Signatures of manifests: Ed25519 over the bytes of `manifest.json`, in base64 in the file beside it.

use std::path::Path;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The file of the signature, in the folder of the model.
pub const SIGNATURE: &str = "manifest.json.sig";
/// Bytes of a public key, the last of its DER form (RFC 8410).
const KEY_BYTES: usize = 32;

/// A key that signatures are checked with.
#[derive(Clone, Debug)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Reads a key as `openssl pkey -pubout` writes it.
    ///
    /// # Errors
    /// When it is no such file.
    pub fn read(path: &Path) -> Result<Self, String> {
        let der = read_pem(path, "PUBLIC KEY")?;
        let key = der.len().checked_sub(KEY_BYTES).map(|start| der[start..].to_vec());
        // The header of RFC 8410 has 12 bytes.
        key.filter(|_| der.len() == KEY_BYTES + 12)
            .map(Self)
            .ok_or_else(|| format!("{}: not a public key of Ed25519", path.display()))
    }

    /// Checks the signature of a manifest.
    ///
    /// # Errors
    /// When it is not of this key and these bytes.
    pub fn check(&self, manifest: &[u8], signature: &[u8]) -> Result<(), String> {
        let signature = STANDARD.decode(signature.trim_ascii()).map_err(|e| format!("{SIGNATURE}: not base64: {e}"))?;
        let key = UnparsedPublicKey::new(&ED25519, &self.0);
        key.verify(manifest, &signature).map_err(|_| format!("{SIGNATURE} is not of rollout.public_key_file"))
    }
}

/// Signs a manifest with the private key in `path`, as `openssl genpkey -algorithm ed25519` writes it.
///
/// # Errors
/// When the file is not such a key.
pub fn sign(manifest: &[u8], path: &Path) -> Result<String, String> {
    let der = read_pem(path, "PRIVATE KEY")?;
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der)
        .map_err(|e| format!("{}: not a private key of Ed25519: {e}", path.display()))?;
    Ok(STANDARD.encode(key.sign(manifest)) + "\n")
}

fn read_pem(path: &Path, label: &str) -> Result<Vec<u8>, String> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).map_err(|e| format!("{shown}: {e}"))?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let body = text.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end)).map(|(body, _)| body);
    let body = body.ok_or_else(|| format!("{shown}: no {label} in PEM"))?;
    let digits: String = body.chars().filter(|c| !c.is_whitespace()).collect();
    STANDARD.decode(digits).map_err(|e| format!("{shown}: {e}"))
}
