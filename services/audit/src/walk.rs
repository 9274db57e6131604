//! Walks a stored log from its first to its last byte and checks every header, frame, chain hash
//! and signature (L1). Pure over readers: recovery at start and verification are this one walk.
//! Memory is bounded by one frame.

use std::io::{self, Read};

use crate::format::{
    self, Bad, ChainHash, Checkpoint, FRAME_HEADER, FrameHeader, FrameKind, SEGMENT_HEADER,
    SegmentHeader,
};
use crate::record::Body;

/// Where and how the stored log is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The first entry that is wrong or missing.
    pub index: u64,
    /// The file, within the log's directory.
    pub file: String,
    /// The byte in that file at which the bad frame or header starts.
    pub offset: u64,
    /// What is wrong with it.
    pub reason: String,
    /// Whether a crash in the middle of a write leaves such bytes.
    pub(crate) torn: bool,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Damage { index, file, offset, reason, .. } = self;
        write!(f, "entry {index} ({file}, byte {offset}): {reason}")
    }
}

/// A place in the log between two frames, and all that is known of what stands before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the next entry.
    pub(crate) index: u64,
    /// Chain hash before it.
    pub(crate) chain: ChainHash,
    /// First index of the segment that it is in.
    pub(crate) segment: u64,
    /// Byte offset in that segment.
    pub(crate) offset: u64,
    /// The newest journal sequence number before it.
    pub(crate) seq: u64,
}

/// The state of one walk.
pub(crate) struct Walk {
    head: Checkpoint,
    /// Signatures are checked on checkpoints of at least this size. Smaller ones are covered by
    /// the signature of the head, through the chain.
    check_from: u64,
    /// Checkpoints that the log must agree with.
    expected: Vec<Checkpoint>,
    at: Place,
    /// The newest checkpoint frame, and the place behind it.
    signed: Option<(Checkpoint, Place)>,
    /// The place behind each header.
    starts: Vec<Place>,
    /// Stop behind this checkpoint: what follows is being written at this moment.
    until: Option<Checkpoint>,
}

impl Walk {
    /// A walk over the log that `head` speaks of.
    pub(crate) fn new(head: Checkpoint, check_from: u64) -> Walk {
        let at =
            Place { index: 0, chain: format::genesis(head.key), segment: 0, offset: 0, seq: 0 };
        Walk {
            head,
            check_from,
            expected: vec![head],
            at,
            signed: None,
            starts: Vec::new(),
            until: None,
        }
    }

    /// A walk that goes on at a place that an earlier one has checked. It checks the chain; the
    /// signatures of what it passes were checked then.
    pub(crate) fn resume(head: Checkpoint, at: Place) -> Walk {
        Walk { at, ..Walk::new(head, u64::MAX) }
    }

    /// Also holds the log against a checkpoint that was kept elsewhere.
    pub(crate) fn expect(&mut self, outside: Checkpoint) {
        self.expected.push(outside);
    }

    /// Ends the walk behind this checkpoint's frame.
    pub(crate) fn until(&mut self, checkpoint: Checkpoint) {
        self.until = Some(checkpoint);
    }

    /// Where the walk is.
    pub(crate) fn place(&self) -> Place {
        self.at
    }

    /// The places behind the headers of the segments walked so far.
    pub(crate) fn starts(&self) -> &[Place] {
        &self.starts
    }

    /// The newest checkpoint that was met, and the place behind its frame.
    pub(crate) fn signed(&self) -> Option<(Checkpoint, Place)> {
        self.signed
    }

    /// Whether the walk has reached the checkpoint that it was told to end at.
    pub(crate) fn is_over(&self) -> bool {
        self.until
            .is_some_and(|until| until.size == 0 || self.signed.is_some_and(|(c, _)| c == until))
    }

    /// Walks one segment; `visit` learns each entry's body and the place behind it, and ends the
    /// walk by returning false. Segments are given in the order of their names.
    pub(crate) fn segment(
        &mut self,
        first: u64,
        mut reader: impl Read,
        visit: impl FnMut(Place, &[u8]) -> bool,
    ) -> Result<(), Damage> {
        self.check_expected()?;
        if first != self.at.index {
            return Err(self.missing(first));
        }
        if self.at.offset > 0 && self.signed.is_none_or(|(_, place)| place != self.at) {
            return Err(self.damage("the segment does not end in a checkpoint".into()));
        }
        self.at.segment = first;
        self.at.offset = 0;
        self.header(&mut reader)?;
        self.frames(reader, visit)
    }

    /// Walks on to the end of a segment whose reader stands at the walk's place, or until `visit`
    /// returns false.
    pub(crate) fn frames(
        &mut self,
        mut reader: impl Read,
        mut visit: impl FnMut(Place, &[u8]) -> bool,
    ) -> Result<(), Damage> {
        while !self.is_over() && self.frame(&mut reader, &mut visit)? {}
        Ok(())
    }

    /// After the last segment: everything that was signed is there, and all that is there was
    /// signed.
    pub(crate) fn finish(&self) -> Result<Checkpoint, Damage> {
        self.check_expected()?;
        if let Some(beyond) = self.expected.iter().find(|c| c.size > self.at.index) {
            let reason = format!(
                "the log ends here, but a checkpoint was signed over {} entries: entries are lost",
                beyond.size
            );
            return Err(self.damage(reason));
        }
        let head = self.head;
        match self.signed {
            Some((newest, place)) if newest == head && place == self.at => Ok(head),
            None if head.size == 0 && self.at.offset == 0 => Ok(head),
            Some((newest, place)) if place == self.at && newest.size >= head.size => Err(Damage {
                file: "head".into(),
                offset: 0,
                ..self.damage(format!(
                    "the head file speaks of {} entries, the log's last checkpoint of {}: it was \
                     rolled back, or the node stopped between the two; the service mends the \
                     latter when it starts",
                    head.size, newest.size
                ))
            }),
            _ => Err(self.torn(
                "what stands before this was never signed: a crash leaves such bytes, and the \
                 service cuts them off when it starts",
            )),
        }
    }

    /// A fault at the present place.
    pub(crate) fn damage(&self, reason: String) -> Damage {
        let at = &self.at;
        let file = format::segment_name(at.segment);
        Damage { index: at.index, file, offset: at.offset, reason, torn: false }
    }

    fn torn(&self, reason: &str) -> Damage {
        Damage { torn: true, ..self.damage(reason.into()) }
    }

    fn missing(&self, first: u64) -> Damage {
        let reason = if first > self.at.index {
            format!("entries {} to {} are missing: a segment was removed", self.at.index, first - 1)
        } else {
            format!("this segment repeats entries from {first} on")
        };
        Damage { file: format::segment_name(first), offset: 0, ..self.damage(reason) }
    }

    fn check_expected(&self) -> Result<(), Damage> {
        let at = &self.at;
        match self.expected.iter().find(|c| c.size == at.index && c.head != at.chain) {
            None => Ok(()),
            Some(_) => Err(self.damage(
                "the entries up to here are not those that a signed checkpoint speaks of: the log \
                 was forked or replaced"
                    .into(),
            )),
        }
    }

    fn header(&mut self, reader: &mut impl Read) -> Result<(), Damage> {
        let mut bytes = [0; SEGMENT_HEADER];
        if fill(reader, &mut bytes).map_err(|e| self.unreadable(&e))? < bytes.len() {
            return Err(self.torn("the segment's header is cut short"));
        }
        let header = SegmentHeader::decode(&bytes).map_err(|bad| self.bad(bad))?;
        let wanted =
            SegmentHeader { key: self.head.key, first: self.at.index, previous: self.at.chain };
        if header != wanted {
            return Err(self.damage("the segment belongs to another log or another place".into()));
        }
        self.at.offset = SEGMENT_HEADER as u64;
        self.starts.push(self.at);
        Ok(())
    }

    /// One frame; false at the end of the segment.
    fn frame(
        &mut self,
        reader: &mut impl Read,
        visit: &mut impl FnMut(Place, &[u8]) -> bool,
    ) -> Result<bool, Damage> {
        let mut bytes = [0; FRAME_HEADER];
        match fill(reader, &mut bytes).map_err(|e| self.unreadable(&e))? {
            0 => return Ok(false),
            FRAME_HEADER => {}
            _ => return Err(self.torn("the frame is cut short")),
        }
        let header = FrameHeader::decode(&bytes).map_err(|bad| self.bad(bad))?;
        let mut body = vec![0; header.len];
        if fill(reader, &mut body).map_err(|e| self.unreadable(&e))? < body.len() {
            return Err(self.torn("the frame is cut short"));
        }
        let behind = self.at.offset + (FRAME_HEADER + body.len()) as u64;
        match header.kind {
            FrameKind::Entry => {
                self.entry(&header, &body)?;
                self.at.offset = behind;
                Ok(visit(self.at, &body))
            }
            FrameKind::Checkpoint => {
                let checkpoint = self.checkpoint(&header, &body)?;
                self.at.offset = behind;
                self.signed = Some((checkpoint, self.at));
                Ok(true)
            }
        }
    }

    fn entry(&mut self, header: &FrameHeader, body: &[u8]) -> Result<(), Damage> {
        let hash = format::entry_hash(&self.at.chain, self.at.index, body);
        if hash != header.hash {
            return Err(self.torn("the entry does not match its chain hash"));
        }
        let seq =
            Body::new(body).seq().map_err(|_| self.damage("the entry is no record".into()))?;
        if seq != 0 && seq <= self.at.seq {
            return Err(self.damage(format!("journal record {seq} is in the log twice")));
        }
        // The present entry is what a checkpoint disagrees with, so it is named if one does.
        let next =
            Place { index: self.at.index + 1, chain: hash, seq: seq.max(self.at.seq), ..self.at };
        if self.expected.iter().any(|c| c.size == next.index && c.head != next.chain) {
            return Err(self.damage(
                "the entries up to this one are not those that a signed checkpoint speaks of: the \
                 log was forked or rewritten"
                    .into(),
            ));
        }
        self.at = next;
        Ok(())
    }

    fn checkpoint(&self, header: &FrameHeader, body: &[u8]) -> Result<Checkpoint, Damage> {
        let at = &self.at;
        let checkpoint =
            format::checkpoint_in(header, &at.chain, body).map_err(|bad| self.bad(bad))?;
        if checkpoint.size != at.index
            || checkpoint.head != at.chain
            || checkpoint.key != self.head.key
        {
            return Err(self.damage("the checkpoint speaks of other entries".into()));
        }
        if checkpoint.size >= self.check_from && checkpoint.verify().is_err() {
            return Err(self.damage("the checkpoint's signature is wrong".into()));
        }
        Ok(checkpoint)
    }

    fn unreadable(&self, error: &io::Error) -> Damage {
        self.damage(format!("it cannot be read: {error}"))
    }

    fn bad(&self, bad: Bad) -> Damage {
        Damage { torn: matches!(bad, Bad::Damaged(_)), ..self.damage(bad_reason(&bad)) }
    }
}

/// What is wrong, in words.
pub(crate) fn bad_reason(bad: &Bad) -> String {
    match bad {
        Bad::Damaged(what) => (*what).to_owned(),
        Bad::Newer(version) => format!(
            "it was written by a newer version of DistOS (format {version}, this one knows {})",
            format::VERSION
        ),
    }
}

/// Reads until the buffer is full or the end is reached; returns how much there was.
pub(crate) fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
