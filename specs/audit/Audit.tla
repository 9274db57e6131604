------------------------------- MODULE Audit -------------------------------
(***************************************************************************)
(* The way of a change of authority from the kernel's journal into the     *)
(* audit log, and what an outsider can know who keeps a checkpoint of it.  *)
(*                                                                         *)
(* L1: the log is append-only; whoever keeps a checkpoint detects a        *)
(*     change, a deletion or a fork, offline.                              *)
(* L2: no increase of authority shows before its record is durable; a      *)
(*     decrease acts first and is durable when it returns; the kernel      *)
(*     forgets no record that the log could still lose.                    *)
(*                                                                         *)
(* Modelled: kernel/host's journal and outbox with the orders of the core  *)
(* (RecordFirst, TableFirst, Lazy), services/audit's store, keeper, intake *)
(* and walk. The kernel or the audit service is killed at any step, the    *)
(* power fails at any step, the disk is full at any step, acknowledgements *)
(* come late or never. Once, somebody cuts the log file or puts an older   *)
(* copy of the directory back while the service is down, and at any time   *)
(* somebody with the service's key shows a holder another log.             *)
(*                                                                         *)
(* A hash is injective: a chain value is written as the sequence that it   *)
(* commits to (ChainOf). A signature is what the key's owner chose to      *)
(* sign, and the adversary owns the key, so signatures stop nobody here.   *)
(*                                                                         *)
(* Not modelled: segments and rotation (one file stands for them), guards  *)
(* and quiescence (see the spec capability), the bound of the outbox, the  *)
(* bytes of a frame, an adversary who rewrites the kernel's own journal or *)
(* changes the log's files under a running service.                        *)
(***************************************************************************)
EXTENDS Naturals, Sequences

CONSTANTS
    Caps,      \* durable capabilities that may be minted, each once
    Reports,   \* what a vat may report; the empty set makes fewer states
    Holders,   \* who keeps a checkpoint outside the node
    Victims,   \* those holders whom the adversary with the key can reach
    MaxSeq     \* journal records

VARIABLES
    kernel,       \* "up" or "down"
    journal,      \* the submitted records, in order; sequence number = position
    jsynced,      \* how many of them are durable
    table,        \* capabilities that show in the capability table
    derived,      \* those under which a session holds a derived one
    told,         \* those whose revocation has returned
    trimmed,      \* records up to this one are gone from the outbox
    audit,        \* "down", "open" or "damaged"
    step,         \* of an append: "idle", "writing" or "synced"
    log,          \* entries in the log file as the file system shows it
    signed,       \* entries up to the file's last whole checkpoint frame
    synced,       \* entries that are durable, with their checkpoint frame
    head,         \* the checkpoint in the head file
    head_synced,  \* the checkpoint there after a power failure
    size,         \* Store::checkpoint().size: what the service calls its log
    acked,        \* the newest record that was ever acknowledged
    tampered,     \* "no", "cut" or "putback"
    seen          \* the entries that each holder verified last

kernelVars == <<kernel, journal, jsynced, table, derived, told>>
fileVars   == <<log, signed, synced, head, head_synced>>
auditVars  == <<audit, step, size, acked>>
vars == <<kernelVars, trimmed, fileVars, auditVars, tampered, seen>>

Min(a, b) == IF a < b THEN a ELSE b
Max(a, b) == IF a > b THEN a ELSE b
Prefix(s, n) == SubSeq(s, 1, Min(n, Len(s)))
IsPrefix(s, t) == Len(s) <= Len(t) /\ SubSeq(t, 1, Len(s)) = s

-----------------------------------------------------------------------------
(* Records, entries, checkpoints *)

Record(op, cap) == [op |-> op, cap |-> cap]
Entry(seq)      == [seq |-> seq, op |-> journal[seq].op, cap |-> journal[seq].cap]
(* The service's own entry where numbers are missing. *)
Gap             == [seq |-> 0, op |-> "gap", cap |-> "none"]
(* An entry that no journal ever held. *)
Forged          == [seq |-> 0, op |-> "forged", cap |-> "none"]

(* The chain value after these entries: each hash covers its predecessor. *)
ChainOf(entries) == entries

(* What is signed and kept: a number and a hash, not the entries. *)
CheckpointOf(entries) == [size |-> Len(entries), head |-> ChainOf(entries)]

(* The newest journal record in these entries (Place::seq). *)
LastSeq(entries) ==
    LET seqs == {entries[i].seq : i \in 1..Len(entries)}
    IN  CHOOSE n \in seqs \cup {0} : \A m \in seqs : m <= n

(* verify_dir(entries, outside): the walk compares its chain value with the
   checkpoint's where it has walked as many entries, and reaches that place. *)
Accepts(outside, entries) ==
    /\ outside.size <= Len(entries)
    /\ ChainOf(Prefix(entries, outside.size)) = outside.head

Committed == Prefix(log, size)

-----------------------------------------------------------------------------
(* The kernel *)

Submitted(op, c) == \E n \in 1..Len(journal) : journal[n] = Record(op, c)
Durable(op, c)   == \E n \in 1..jsynced : journal[n] = Record(op, c)
(* The core's state in memory: it runs ahead of the disk. *)
Live == {c \in Caps : Submitted("mint", c) /\ ~Submitted("revoke", c)}

Submit(op, c) ==
    /\ kernel = "up"
    /\ Len(journal) < MaxSeq
    /\ journal' = Append(journal, Record(op, c))

(* RecordFirst: decided and submitted; shows nowhere. *)
Mint(c) ==
    /\ ~Submitted("mint", c)
    /\ Submit("mint", c)
    /\ UNCHANGED <<kernel, jsynced, table, derived, told, trimmed, fileVars, auditVars, tampered, seen>>

(* The record is durable: the capability is published, if it is alive still. *)
Publish(c) ==
    /\ kernel = "up"
    /\ c \in Live \ table
    /\ Durable("mint", c)
    /\ table' = table \cup {c}
    /\ UNCHANGED <<kernel, journal, jsynced, derived, told, trimmed, fileVars, auditVars, tampered, seen>>

(* Lazy: below a parent that shows, the record may lag. *)
Derive(c) ==
    /\ c \in table \ derived
    /\ Submit("derive", c)
    /\ derived' = derived \cup {c}
    /\ UNCHANGED <<kernel, jsynced, table, told, trimmed, fileVars, auditVars, tampered, seen>>

(* TableFirst: the capability and all below it are dead at once. *)
Revoke(c) ==
    /\ c \in Live
    /\ Submit("revoke", c)
    /\ table' = table \ {c}
    /\ derived' = derived \ {c}
    /\ UNCHANGED <<kernel, jsynced, told, trimmed, fileVars, auditVars, tampered, seen>>

(* The revocation returns, to its first caller and to any other. *)
RevokeReturns(c) ==
    /\ kernel = "up"
    /\ Durable("revoke", c)
    /\ told' = told \cup {c}
    /\ UNCHANGED <<kernel, journal, jsynced, table, derived, trimmed, fileVars, auditVars, tampered, seen>>

(* Lazy, without any effect: what a vat reports for the auditor. *)
Report(what) ==
    /\ Submit("report", what)
    /\ UNCHANGED <<kernel, jsynced, table, derived, told, trimmed, fileVars, auditVars, tampered, seen>>

(* One fdatasync for all that the writer has taken. *)
SyncJournal ==
    /\ kernel = "up"
    /\ \E n \in jsynced + 1..Len(journal) : jsynced' = n
    /\ UNCHANGED <<kernel, journal, table, derived, told, trimmed, fileVars, auditVars, tampered, seen>>

(* An acknowledgement arrives, however late: the outbox forgets. *)
Acknowledge ==
    /\ kernel = "up"
    /\ trimmed < acked
    /\ trimmed' = acked
    /\ UNCHANGED <<kernelVars, fileVars, auditVars, tampered, seen>>

(* The journal is read, what was read is made durable, the table is made
   anew. The outbox holds again what it had forgotten, as far as no segment
   was removed. *)
Boot ==
    /\ kernel = "down"
    /\ kernel' = "up"
    /\ jsynced' = Len(journal)
    /\ table' = Live
    /\ \E n \in {0, trimmed} : trimmed' = n
    /\ UNCHANGED <<journal, derived, told, fileVars, auditVars, tampered, seen>>

-----------------------------------------------------------------------------
(* The audit service *)

(* Store::open: the walk, then recovery. The head file's checkpoint must be
   in the log; what stands behind the last checkpoint is cut off; what is
   left is durable before anything else happens. *)
Open ==
    /\ kernel = "up"
    /\ audit = "down"
    /\ UNCHANGED <<kernelVars, trimmed, acked, tampered, seen>>
    /\ IF Accepts(head, Prefix(log, signed))
       THEN /\ audit' = "open"
            /\ step' = "idle"
            /\ log' = Prefix(log, signed)
            /\ size' = signed
            /\ synced' = signed
            /\ head' = CheckpointOf(log')
            /\ head_synced' = head'
            /\ UNCHANGED signed
       ELSE /\ audit' = "damaged"
            /\ UNCHANGED <<step, size, fileVars>>

(* Keeper::round pulls, intake::take skips what the log has and marks what
   is missing, Store::append begins to write the batch and its checkpoint.
   The outbox may answer with anything that it holds, up to any record that
   is durable, whatever it was asked for. *)
Pull(to) ==
    LET last  == LastSeq(Committed)
        first == Max(trimmed, last) + 1
        taken == [n \in 1..to + 1 - first |-> Entry(first + n - 1)]
        batch == IF first > last + 1 THEN <<Gap>> \o taken ELSE taken
    IN  /\ kernel = "up"
        /\ audit = "open"
        /\ step = "idle"
        /\ first <= to
        /\ to <= jsynced
        /\ step' = "writing"
        /\ log' = Committed \o batch
        /\ signed' = Len(log')
        /\ synced' = size
        /\ UNCHANGED <<kernelVars, trimmed, head, head_synced, audit, size, acked, tampered, seen>>

(* sync_data has returned. *)
SyncSegment ==
    /\ audit = "open"
    /\ step = "writing"
    /\ step' = "synced"
    /\ synced' = Len(log)
    /\ UNCHANGED <<kernelVars, trimmed, log, signed, head, head_synced, audit, size, acked, tampered, seen>>

(* The head file names the batch. The rename is not durable yet. *)
WriteHead ==
    /\ audit = "open"
    /\ step = "synced"
    /\ step' = "idle"
    /\ head' = CheckpointOf(log)
    /\ size' = Len(log)
    /\ UNCHANGED <<kernelVars, trimmed, log, signed, synced, head_synced, audit, acked, tampered, seen>>

(* The disk is full, or fails. The batch is cut off, or not even that; what
   a power failure makes of the cut is open until the next batch is synced. *)
AppendFails ==
    /\ audit = "open"
    /\ step # "idle"
    /\ step' = "idle"
    /\ \E n \in {size, Len(log)} :
        /\ log' = Prefix(log, n)
        /\ signed' = n
        /\ synced' = size
    /\ UNCHANGED <<kernelVars, trimmed, head, head_synced, audit, size, acked, tampered, seen>>

(* Store::settle: the head file's new name is durable. *)
Settle ==
    /\ audit = "open"
    /\ step = "idle"
    /\ head_synced' = head
    /\ UNCHANGED <<kernelVars, trimmed, log, signed, synced, head, auditVars, tampered, seen>>

(* The keeper acknowledges what is in the log, after settling it. *)
Ack ==
    /\ audit = "open"
    /\ step = "idle"
    /\ head_synced = head
    /\ acked' = Max(acked, LastSeq(Committed))
    /\ UNCHANGED <<kernelVars, trimmed, fileVars, audit, step, size, tampered, seen>>

-----------------------------------------------------------------------------
(* Ends *)

(* What a log file may hold after its writer is gone: all that is durable
   (from), and any part of the batch that was being written. A batch that is
   not whole has no checkpoint frame. *)
LeaveLog(from) ==
    \E n \in from..Len(log) :
        /\ log' = Prefix(log, n)
        /\ \/ signed' = Min(signed, n) /\ n = Len(log)
           \/ signed' = Min(signed, size) /\ synced < Len(log) /\ from < Len(log)

AuditEnds ==
    /\ audit' = "down"
    /\ step' = "idle"
    /\ UNCHANGED <<size, acked, tampered, seen>>

(* Records that were submitted and not written are gone; sessions end. *)
KernelEnds ==
    /\ kernel' = "down"
    /\ table' = {}
    /\ derived' = {}
    /\ \E n \in jsynced..Len(journal) : journal' = Prefix(journal, n)
    /\ UNCHANGED <<told, trimmed>>

(* The file system shows what was written, durable or not. *)
KeepsPages ==
    /\ LeaveLog(IF step = "writing" THEN size ELSE Len(log))
    /\ UNCHANGED <<synced, head, head_synced>>

AuditKilled ==
    /\ audit # "down"
    /\ AuditEnds
    /\ KeepsPages
    /\ UNCHANGED <<kernelVars, trimmed>>

(* The kernel is killed, or fences itself because a record cannot be made
   durable: all processes of the node end with it. *)
NodeKilled ==
    /\ kernel = "up"
    /\ KernelEnds
    /\ AuditEnds
    /\ KeepsPages
    /\ UNCHANGED jsynced

(* The power fails, also while the node is down: only what is durable is sure
   to be there again, and whatever is there is durable. *)
PowerFails ==
    /\ KernelEnds
    /\ AuditEnds
    /\ LeaveLog(synced)
    /\ jsynced' = Len(journal')
    /\ synced' = Len(log')
    /\ \E old \in {head, head_synced} : head' = old /\ head_synced' = old

-----------------------------------------------------------------------------
(* The adversary *)

(* Somebody, or the disk, loses the end of the log file. The head file stays.
   The last checkpoint frame before the cut may be anywhere. *)
CutLog ==
    /\ audit = "down"
    /\ tampered = "no"
    /\ tampered' = "cut"
    /\ \E n \in 0..Len(log) : \E s \in 0..Min(n, signed) :
        /\ n < Len(log)
        /\ log' = Prefix(log, n)
        /\ signed' = s
        /\ synced' = n
    /\ UNCHANGED <<kernelVars, trimmed, head, head_synced, auditVars, seen>>

(* Somebody puts back an older copy of the whole directory. *)
PutBack ==
    /\ audit = "down"
    /\ tampered = "no"
    /\ tampered' = "putback"
    /\ \E n \in 0..size :
        /\ n < Len(log)
        /\ log' = Prefix(log, n)
        /\ signed' = n
        /\ synced' = n
        /\ size' = n
        /\ head' = CheckpointOf(log')
        /\ head_synced' = head'
    /\ UNCHANGED <<kernelVars, trimmed, audit, step, acked, seen>>

(* A few of the logs that whoever has the key can sign: this one cut short,
   cut short and continued otherwise, rewritten in one place. *)
Forgeries ==
    {Prefix(Committed, n) : n \in 0..Len(Committed)}
    \cup {Append(Prefix(Committed, n), Forged) : n \in 0..Min(Len(Committed), MaxSeq - 1)}
    \cup {[Committed EXCEPT ![n] = Forged] : n \in 1..Len(Committed)}

(* A holder verifies a log against the checkpoint that it kept. If it accepts,
   it keeps the new checkpoint. *)
Verify(h, entries) ==
    /\ Accepts(CheckpointOf(seen[h]), entries)
    /\ seen' = [seen EXCEPT ![h] = entries]

(* The service hands out its newest checkpoint, settled or not. *)
TakeCheckpoint(h) ==
    /\ audit = "open"
    /\ Verify(h, Committed)
    /\ UNCHANGED <<kernelVars, trimmed, fileVars, auditVars, tampered>>

(* The adversary shows a holder another log. *)
ShowForgery(h) ==
    /\ \E entries \in Forgeries \ {seen[h]} : Verify(h, entries)
    /\ UNCHANGED <<kernelVars, trimmed, fileVars, auditVars, tampered>>

-----------------------------------------------------------------------------
Init ==
    /\ kernel = "up"
    /\ journal = <<>>
    /\ jsynced = 0
    /\ table = {}
    /\ derived = {}
    /\ told = {}
    /\ trimmed = 0
    /\ audit = "down"
    /\ step = "idle"
    /\ log = <<>>
    /\ signed = 0
    /\ synced = 0
    /\ head = CheckpointOf(<<>>)
    /\ head_synced = CheckpointOf(<<>>)
    /\ size = 0
    /\ acked = 0
    /\ tampered = "no"
    /\ seen = [h \in Holders |-> <<>>]

Next ==
    \/ \E c \in Caps : Mint(c) \/ Publish(c) \/ Derive(c) \/ Revoke(c) \/ RevokeReturns(c)
    \/ \E what \in Reports : Report(what)
    \/ SyncJournal \/ Acknowledge \/ Boot
    \/ Open
    \/ \E to \in 1..MaxSeq : Pull(to)
    \/ SyncSegment \/ WriteHead \/ AppendFails \/ Settle \/ Ack
    \/ AuditKilled \/ NodeKilled \/ PowerFails
    \/ CutLog \/ PutBack
    \/ \E h \in Holders : TakeCheckpoint(h)
    \/ \E h \in Victims : ShowForgery(h)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
(* What must hold *)

Entries == [seq : 0..MaxSeq, op : {"mint", "derive", "revoke", "report", "gap", "forged"},
            cap : Caps \cup Reports \cup {"none"}]

TypeOK ==
    /\ kernel \in {"up", "down"}
    /\ \A n \in 1..Len(journal) :
        journal[n] \in [op : {"mint", "derive", "revoke", "report"}, cap : Caps \cup Reports \cup {"none"}]
    /\ jsynced \in 0..Len(journal)
    /\ table \subseteq Caps /\ derived \subseteq Caps /\ told \subseteq Caps
    /\ trimmed \in 0..MaxSeq /\ acked \in 0..MaxSeq
    /\ audit \in {"down", "open", "damaged"}
    /\ step \in {"idle", "writing", "synced"}
    /\ \A n \in 1..Len(log) : log[n] \in Entries
    /\ signed \in 0..Len(log) /\ synced \in 0..Len(log)
    /\ head.size \in Nat /\ head_synced.size \in Nat /\ size \in Nat
    /\ tampered \in {"no", "cut", "putback"}

(* An increase shows only when its record is durable; what a session derives
   shows only below one that does. *)
L2_NoEffectBeforeRecord ==
    /\ \A c \in table : Durable("mint", c)
    /\ derived \subseteq table

(* A decrease acts at once, and one that has returned outlives every crash. *)
L2_RevokedStaysRevoked ==
    /\ \A c \in table : ~Submitted("revoke", c)
    /\ \A c \in told : Durable("revoke", c)

(* The log holds only what is durable in the journal: a record that a power
   failure can still take, and whose number another then gets, is not in it. *)
L2_LoggedIsJournaled ==
    \A n \in 1..Len(log) :
        log[n].seq # 0 => log[n].seq <= jsynced /\ log[n] = Entry(log[n].seq)

(* Every record that was acknowledged is in the log, where no power failure
   reaches it, once and in its place. *)
L2_AckedIsLoggedOnce ==
    tampered = "no" =>
        /\ \A n \in 1..Len(log) : log[n].seq = n
        /\ acked <= Min(synced, signed)
        /\ trimmed <= acked

(* A record is in the log at most once, in order, and a stretch that is not
   there leaves a gap entry, also after somebody put an old copy back. *)
L1_NoneTwiceNoneSilentlyMissing ==
    \A n \in 1..Len(log) :
        log[n].seq # 0 =>
            LET before == LastSeq(Prefix(log, n - 1))
            IN  /\ log[n].seq > before
                /\ log[n].seq > before + 1 => n > 1 /\ log[n - 1].op = "gap"

(* After a log file lost what was acknowledged, the service does not go on as
   if nothing had happened. Only who also puts back an older head file gets
   past it, and that a holder of a checkpoint finds. *)
L1_TruncationIsDetected ==
    audit = "open" /\ tampered # "putback" => acked <= LastSeq(Committed)

(* No log that agrees with a kept checkpoint differs in what it covers. *)
Shown == Forgeries \cup {Committed} \cup {seen[h] : h \in Holders}
L1_NoForkAccepted ==
    \A h \in Holders : \A entries \in Shown :
        Accepts(CheckpointOf(seen[h]), entries) => IsPrefix(seen[h], entries)

(* Two holders to whom different histories were shown find out when they hold
   one log against both checkpoints: none satisfies both. *)
L1_ComparingHoldersDetectFork ==
    \A g, h \in Holders : g # h => \A entries \in Shown :
        /\ Accepts(CheckpointOf(seen[g]), entries)
        /\ Accepts(CheckpointOf(seen[h]), entries)
        => IsPrefix(seen[g], seen[h]) \/ IsPrefix(seen[h], seen[g])

(* A log that was cut back below a kept checkpoint is refused. *)
L1_RollbackIsDetected ==
    \A h \in Holders : \A entries \in Shown :
        Len(entries) < Len(seen[h]) => ~Accepts(CheckpointOf(seen[h]), entries)

(* And no crash makes an honest service a forger: what it handed out, it keeps. *)
L1_NoFalseAlarm ==
    \A h \in Holders :
        (\A n \in 1..Len(seen[h]) : seen[h][n] # Forged) /\ tampered = "no" =>
            /\ audit # "damaged"
            /\ audit = "open" => Accepts(CheckpointOf(seen[h]), Committed)

(* What the service calls its log never changes and never shrinks, but by the
   hand of somebody who can write its directory. (Of a log that was cut,
   L1_TruncationIsDetected says what remains true.) *)
L1_AppendOnly == [][tampered' = tampered /\ tampered # "cut" => IsPrefix(Committed, log')]_vars
=============================================================================
