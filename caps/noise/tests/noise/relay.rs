//! Whoever passes a session on: two pipes, and what is done to the bytes between them.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// What comes from whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Holder,
    Vat,
}

/// Passes bytes on until they end, with the one at `flip` changed, and returns what passed.
pub(crate) async fn pass(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    flip: Option<usize>,
) -> Vec<u8> {
    let mut passed = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = reader.read(&mut buffer).await {
        let bytes = &mut buffer[..read];
        if let Some(byte) =
            flip.and_then(|at| at.checked_sub(passed.len())).and_then(|at| bytes.get_mut(at))
        {
            *byte ^= 1;
        }
        passed.extend_from_slice(bytes);
        if writer.write_all(bytes).await.is_err() {
            break;
        }
    }
    let _ = writer.shutdown().await;
    passed
}

/// Passes on what has a length, `first` of them as they are; the frames that follow, once they have ended, as `change` has them.
/// Bytes that have no length are before that.
pub(crate) async fn pass_frames(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    without_length: usize,
    first: usize,
    change: fn(&mut Vec<Vec<u8>>),
) {
    let mut hello = vec![0; without_length];
    reader.read_exact(&mut hello).await.unwrap();
    writer.write_all(&hello).await.unwrap();
    let mut frames = Vec::new();
    let mut passed = 0;
    while let Ok(length) = reader.read_u16().await {
        let mut frame = vec![0; usize::from(length) + 2];
        frame[..2].copy_from_slice(&length.to_be_bytes());
        reader.read_exact(&mut frame[2..]).await.unwrap();
        if passed < first {
            writer.write_all(&frame).await.unwrap();
            passed += 1;
        } else {
            frames.push(frame);
        }
    }
    change(&mut frames);
    for frame in frames {
        let _ = writer.write_all(&frame).await;
    }
    let _ = writer.shutdown().await;
}
