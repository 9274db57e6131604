----------------------------- MODULE Capability -----------------------------
(* How the kernel puts the decisions of module Forest into effect: the capability table, guards and
   quiescence (C2), the journal and the order between it and the table (L2), slots that are used
   again, services that hang, and a kernel that crashes and recovers.

   Three kinds of actors interleave at every single load and store:

   kernel    One thread (kernel/host, kernel.rs). A section of its loop decides a command and stores
             into the table without a pause: `todo` is what is left of it. Between sections, what
             waits in `pending` goes on as it can. A crash may come at any point.
   journal   Another thread (journal.rs) makes records durable in their order, each at any time. A
             crash keeps what is durable and any beginning of the rest.
   users     Threads of Home's vat (caps/table). They follow the table from a slot to its root, load
             by load, under a guard; or they followed it before without a guard, and compare under
             one the generations that they found then. They may stop anywhere and for ever, and may
             try any reference that was ever given out.

   A guard's cell never shows a value twice. So the kernel, when it looks again, finds that a guard
   is gone if it was let go at any time since: here a guard that is let go leaves all snapshots.

   Memory is sequentially consistent here. Why fences make it so where it matters is argued in
   caps/table/src/lib.rs. The two parent words are one: a torn pair names a slot by a generation
   that stands elsewhere, which is dead. Time does not pass: of "killed after 250 ms" there remains
   that a vat may be killed as soon as it is waited for. Neither expiry, gifts, quotas nor foreign
   vats are used here; that they decide rightly is module Replay's. Commands that are refused are
   left out, but for the one who revokes what is dead already (RevokeAgain). The journal is never
   trimmed and never full; a disk that fails ends the kernel, which is a crash. *)
EXTENDS Forest

CONSTANTS
  Users,       \* threads of Home's vat
  MaxCaps,     \* capabilities that are ever made
  MaxLinks,    \* links of a certificate chain: 1 or 2
  MaxJobs,     \* commands under way at a time
  MaxCrashes,  \* crashes of the kernel
  Ops,         \* the commands that are given
  Ways,        \* how users check: "walk", "ancestry"
  Quarantined  \* whether slots wait for quiescence before they are used again

VARIABLES
  f,           \* the forest in the kernel's memory
  place,       \* place[i]: the slot that capability i got in this boot; 0 if none
  table,       \* table[s]: generation (the capability's number, 0 is dead) and parent of slot s
  todo,        \* stores and looks at guards that are left of the kernel's section
  job,         \* what that section is about
  pending,     \* what waits for disk, guards or a parent
  quarantine,  \* capabilities that are gone and whose slots are not free yet
  disk,        \* what the durable part of the journal rebuilds
  tail,        \* records that were submitted and may be lost
  user,        \* what each user is at
  \* observers
  born,        \* born[i]: what i was when it was made, which its record says
  acked,       \* capabilities whose making was answered
  ended,       \* capabilities that somebody gave the command to end
  returned,    \* capabilities that somebody was told are revoked
  refused,     \* links that somebody was told are revoked
  crashes

kernel == <<f, place, quarantine, born, ended>>
journal == <<disk, tail>>
told == <<acked, returned, refused>>
vars == <<kernel, table, todo, job, pending, journal, user, told, crashes>>

-----------------------------------------------------------------------------
(* What is asked for. *)

All == Authority({"read", "write"}, Never, Whole)
Page == Authority({"read"}, Never, [from |-> 0, to |-> 1])
Session == "session1"

(* A link's hash covers all before it in its chain. Red has its own link below `root`, and gave a
   part of that to blue. *)
Link(root, n, holder, authority) ==
  [link |-> <<root, n>>, holder |-> holder, authority |-> authority]
Chains(root) ==
  LET whole == <<Link(root, 1, "key1", All), Link(root, 2, "key2", Page)>> IN
  {SubSeq(whole, 1, n) : n \in 1..MaxLinks}

Known == {i \in acked : place[i] # 0}
Grants ==
  {[op |-> "mint-root", authority |-> All]}
  \cup {[op |-> "derive", vat |-> Home, cap |-> i, authority |-> Page, session |-> Session] :
          i \in Known}
  \cup UNION {{[op |-> "redeem", vat |-> Home, cap |-> i, chain |-> c, session |-> Session] :
          c \in Chains(i)} : i \in {i \in Known : born[i].parent = 0}}
Ends ==
  {[op |-> "revoke", vat |-> Home, cap |-> i] : i \in Known}
  \cup {[op |-> "revoke-link", vat |-> Home, cap |-> i, link |-> <<i, n>>, until |-> Never] :
          i \in {i \in Known : born[i].parent = 0}, n \in 1..MaxLinks}

-----------------------------------------------------------------------------
(* The table. A reference is a slot with the generation that it is meant to have. *)

Slots == 1..Capacity
Root == [slot |-> 0, gen |-> 0]
Ref(i) == IF i = 0 THEN Root ELSE [slot |-> place[i], gen |-> i]
(* A slot that was never written looks like the worst that it could be: a root. *)
NewTable == [s \in Slots |-> [gen |-> 0, parent |-> Root]]

(* A walk with nothing in between: whether a reader finds the reference alive. *)
RECURSIVE Alive(_)
Alive(at) ==
  /\ table[at.slot].gen = at.gen
  /\ table[at.slot].parent = Root \/ Alive(table[at.slot].parent)

Shown == {i \in Ids(f) : place[i] # 0 /\ Alive(Ref(i))}

-----------------------------------------------------------------------------
(* Users. *)

Idle == [pc |-> "idle", cap |-> 0, at |-> Root, parent |-> Root, keeps |-> FALSE, path |-> {}]
NoUser == [now |-> Idle, known |-> [cap |-> 0, path |-> {}]]

(* U1 to U5 (caps/table/src/lib.rs): a guard is held from before the first load until the action is
   over. *)
Guarded(now) == now.pc # "idle" /\ ~now.keeps

(* One step of `u`; a guard that is let go leaves all snapshots. *)
Move(u, now, known) ==
  /\ user' = [user EXCEPT ![u] = [now |-> now, known |-> known]]
  /\ IF Guarded(user[u].now) /\ ~Guarded(now)
     THEN /\ pending' = {[j EXCEPT !.guards = @ \ {u}] : j \in pending}
          /\ job' = [job EXCEPT !.guards = @ \ {u}]
     ELSE UNCHANGED <<pending, job>>
  /\ UNCHANGED <<kernel, table, todo, journal, told, crashes>>

(* Starts from any reference that was ever given out: `GuardPage::commit` with `View::alive`, or,
   with `keeps`, `View::ancestry`, for which no guard is held. *)
Enter(u, i, keeps) ==
  /\ user[u].now.pc = "idle" /\ place[i] # 0
  /\ IF keeps THEN "ancestry" \in Ways /\ user[u].known.cap # i ELSE "walk" \in Ways
  /\ Move(u, [Idle EXCEPT !.pc = "generation", !.cap = i, !.at = Ref(i), !.keeps = keeps],
          user[u].known)

(* `View::read`: the generation, the parent, and the generation again. *)
LoadGeneration(u) ==
  LET now == user[u].now IN
  /\ now.pc = "generation"
  /\ Move(u, IF table[now.at.slot].gen = now.at.gen THEN [now EXCEPT !.pc = "parent"] ELSE Idle,
          user[u].known)

LoadParent(u) ==
  LET now == user[u].now IN
  /\ now.pc = "parent"
  /\ Move(u, [now EXCEPT !.pc = "again", !.parent = table[now.at.slot].parent], user[u].known)

LoadAgain(u) ==
  LET now == user[u].now
      path == IF now.keeps THEN now.path \cup {now.at} ELSE {}
      above == [now EXCEPT !.pc = "generation", !.at = now.parent, !.parent = Root, !.path = path]
      found == [Idle EXCEPT !.pc = "act", !.cap = now.cap] IN
  /\ now.pc = "again"
  /\ IF table[now.at.slot].gen # now.at.gen THEN Move(u, Idle, user[u].known)
     ELSE IF now.parent # Root THEN Move(u, above, user[u].known)
     ELSE IF now.keeps THEN Move(u, Idle, [cap |-> now.cap, path |-> path])
     ELSE Move(u, found, user[u].known)

(* `GuardPage::commit_below` with `View::holds`: the generations of the known path, in any order. *)
EnterBelow(u) ==
  LET known == user[u].known IN
  /\ user[u].now.pc = "idle" /\ known.cap # 0
  /\ Move(u, [Idle EXCEPT !.pc = "compare", !.cap = known.cap, !.path = known.path], known)

Compare(u, at) ==
  LET now == user[u].now
      left == now.path \ {at} IN
  /\ now.pc = "compare" /\ at \in now.path
  /\ Move(u, IF table[at.slot].gen # at.gen THEN Idle
             ELSE IF left # {} THEN [now EXCEPT !.path = left]
             ELSE [Idle EXCEPT !.pc = "act", !.cap = now.cap],
          user[u].known)

(* The effect takes place, and the guard is let go. *)
Act(u) ==
  /\ user[u].now.pc = "act"
  /\ Move(u, Idle, user[u].known)

-----------------------------------------------------------------------------
(* The journal. *)

(* `Forest::replay` of one record. Those of capabilities that are not durable are for the auditor
   alone, and left out. *)
Replay1(d, r) ==
  CASE r.op = "node" ->
         IF born[r.cap].line \ {r.cap} \subseteq d.caps
         THEN [d EXCEPT !.caps = @ \cup {r.cap}] ELSE d
    [] r.op = "tomb" ->
         IF r.cap \notin d.caps THEN d
         ELSE [d EXCEPT !.tombs = @ \cup {[under |-> r.cap, link |-> r.link, until |-> r.until]}]
    [] r.op = "revoke" ->
         LET left == {i \in d.caps : r.cap \notin born[i].line} IN
         [caps |-> left, tombs |-> {t \in d.tombs : t.under \in left}]

RECURSIVE ReplayAll(_, _)
ReplayAll(d, records) ==
  IF records = <<>> THEN d ELSE ReplayAll(Replay1(d, Head(records)), Tail(records))

(* The journal's thread gets on. A group commit is several of these steps. *)
Sync ==
  /\ tail # <<>>
  /\ disk' = Replay1(disk, Head(tail))
  /\ tail' = Tail(tail)
  /\ pending' = {[j EXCEPT !.behind = IF @ = 0 THEN 0 ELSE @ - 1] : j \in pending}
  /\ UNCHANGED <<kernel, table, todo, job, user, told, crashes>>

Recorded(i) == \A n \in DOMAIN tail : ~(tail[n].op = "node" /\ tail[n].cap = i)

-----------------------------------------------------------------------------
(* The kernel's sections. *)

(* A job: what it makes, ends or takes back; the links that it ends; the guards that it waits for;
   how many records that are not durable; and the records that its section still has to submit. *)
Job(kind, caps) ==
  [kind |-> kind, caps |-> caps, links |-> {}, guards |-> {}, behind |-> 0, records |-> <<>>]
NoJob == Job("none", {})

Between == todo = <<>>
MayStart == Between /\ Cardinality(pending) < MaxJobs

Least(S) == CHOOSE x \in S : \A y \in S : x <= y
RECURSIVE Each(_, _)
(* The numbers of S in order, each put through the steps of `ops`. *)
Each(ops, S) ==
  IF S = {} THEN <<>>
  ELSE [n \in DOMAIN ops |-> [op |-> ops[n], cap |-> Least(S)]] \o Each(ops, S \ {Least(S)})
Publishes(S) == Each(<<"parent", "generation">>, S)
Kills(S) == Each(<<"kill">>, S)
LooksAtGuards == Each(<<"guard">>, Users)

(* What is left when the last store of a section is done. *)
Finish(j) ==
  /\ job' = NoJob
  /\ tail' = tail \o j.records
  /\ acked' = IF j.kind = "show" THEN acked \cup j.caps ELSE acked
  /\ pending' = IF j.kind \in {"end", "again", "reclaim"}
                THEN pending \cup {[j EXCEPT !.records = <<>>, !.behind = Len(tail')]}
                ELSE pending

(* Does the stores and looks of `steps` for job `j`, one by one from here on. *)
Begin(steps, j) ==
  /\ todo' = steps
  /\ IF steps = <<>> THEN Finish(j) ELSE job' = j /\ UNCHANGED <<tail, acked, pending>>

Step ==
  LET now == Head(todo)
      i == now.cap
      after == IF now.op = "guard" /\ Guarded(user[i].now)
               THEN [job EXCEPT !.guards = @ \cup {i}] ELSE job IN
  /\ ~Between
  /\ todo' = Tail(todo)
  /\ table' = CASE now.op = "parent" -> [table EXCEPT ![place[i]].parent = Ref(born[i].parent)]
                [] now.op = "generation" -> [table EXCEPT ![place[i]].gen = i]
                [] now.op = "kill" ->
                     [table EXCEPT ![place[i]].gen = IF @ = i THEN 0 ELSE @]
                [] now.op = "guard" -> table
  /\ IF todo' = <<>> THEN Finish(after) ELSE job' = after /\ UNCHANGED <<tail, acked, pending>>
  /\ UNCHANGED <<kernel, user, returned, refused, disk, crashes>>

(* Slots for new capabilities: any that are free. Of those never used, the first: they are alike. *)
Used == {place[i] : i \in Ids(f)}
FreeSlots == Slots \ {place[i] : i \in Held(f) \cup quarantine}
Places(fresh) ==
  {p \in [fresh -> FreeSlots] :
     \A i, j \in fresh :
       /\ i < j => p[i] # p[j]
       /\ \A s \in (1..p[i] - 1) \ Used : p[i] \notin Used => \E k \in fresh : k < i /\ p[k] = s}

Awaited == UNION {j.caps : j \in {j \in pending : j.kind \in {"record-first", "lazy"}}}

(* `Kernel::apply` of a command that makes capabilities. *)
Grant(c) ==
  LET answer == Apply(f, c)
      fresh == Ids(answer.f) \ Ids(f) IN
  /\ MayStart /\ c.op \in Ops
  /\ answer.out = "granted" /\ Len(answer.f.node) <= MaxCaps
  /\ f' = answer.f
  /\ born' = born \o SubSeq(answer.f.node, Len(born) + 1, Len(answer.f.node))
  /\ \E p \in Places(fresh) :
       place' = [i \in Ids(answer.f) |-> IF i \in fresh THEN p[i] ELSE place[i]]
  /\ LET records == Each(<<"node">>, {i \in fresh : born'[i].life = "durable"})
         waits == born'[Least(fresh)].parent \in Awaited IN
     IF answer.order = "record" \/ waits
     THEN /\ tail' = tail \o records
          /\ pending' = pending \cup
               {IF answer.order = "record"
                THEN [Job("record-first", fresh) EXCEPT !.behind = Len(tail')]
                ELSE Job("lazy", fresh)}
          /\ UNCHANGED <<todo, job, acked>>
     ELSE Begin(Publishes(fresh), [Job("show", fresh) EXCEPT !.records = records])
  /\ UNCHANGED <<table, quarantine, ended, disk, user, returned, refused, crashes>>

(* A grant has waited long enough: what is still live is shown, parents first. Answers of the
   journal wake their tasks in the order of the records. *)
Publish(j) ==
  LET shown == {i \in j.caps : \A k \in j.caps : k <= i => k \in Live(f)} IN
  /\ Between
  /\ j \in pending
  /\ \/ /\ j.kind = "record-first"
        /\ j.behind = 0
        /\ \A o \in pending : o.kind = "record-first" => Least(o.caps) >= Least(j.caps)
     \/ /\ j.kind = "lazy"
        /\ born[Least(j.caps)].parent \notin Awaited
  /\ todo' = Publishes(shown)
  /\ job' = IF shown = {} THEN NoJob ELSE Job("show", IF shown = j.caps THEN shown ELSE {})
  /\ pending' = pending \ {j}
  /\ UNCHANGED <<kernel, table, journal, user, told, crashes>>

(* What a command ended: the topmost get a store and a record each, and tombstones come first. *)
Topmost(after) ==
  {i \in Live(f) \ Live(after) : f.node[i].parent = 0 \/ f.node[i].parent \in Live(after)}
(* The record of a tombstone names what the link would hang from. *)
Tombstones(after) ==
  LET new == after.tombs \ f.tombs IN
  IF new = {} THEN <<>>
  ELSE LET t == CHOOSE t \in new : TRUE IN
       <<[op |-> "tomb", cap |-> t.under, link |-> t.link, until |-> t.until]>>
Revocations(after) ==
  Each(<<"revoke">>, {i \in Topmost(after) : f.node[i].life = "durable"})

(* `Kernel::apply` of a revocation: kill, look at the guards, record, and wait for both. *)
Decrease(c) ==
  LET answer == Apply(f, c)
      named == IF c.op = "revoke" THEN {c.cap} ELSE {i \in Ids(f) : born[i].link = c.link}
      links == IF c.op = "revoke" THEN {born[c.cap].link} \ {NoLink} ELSE {c.link} IN
  /\ MayStart /\ c.op \in Ops
  /\ answer.out = "revoked-now"
  /\ f' = answer.f
  /\ ended' = ended \cup named
  /\ Begin(Kills(Topmost(answer.f)) \o LooksAtGuards,
           [Job("end", named) EXCEPT !.links = links,
              !.records = Tombstones(answer.f) \o Revocations(answer.f)])
  /\ UNCHANGED <<place, quarantine, born, table, disk, user, returned, refused, crashes>>

(* A second one comes to end what is dead already: told so when that is as good as done. *)
RevokeAgain(i) ==
  /\ MayStart /\ "revoke" \in Ops
  /\ i \in Known \ (Live(f) \cup returned)
  /\ \A j \in pending : ~(j.kind = "again" /\ i \in j.caps)
  /\ Begin(LooksAtGuards, [Job("again", {i}) EXCEPT !.links = {born[i].link} \ {NoLink}])
  /\ UNCHANGED <<kernel, table, disk, user, returned, refused, crashes>>

(* R4 and R5: the guards that were seen are gone and the records durable. *)
Return(j) ==
  /\ Between
  /\ j \in pending /\ j.kind \in {"end", "again"}
  /\ j.guards = {}
  /\ j.behind = 0
  /\ pending' = pending \ {j}
  /\ returned' = returned \cup j.caps
  /\ refused' = refused \cup j.links
  /\ UNCHANGED <<kernel, table, todo, job, journal, user, acked, crashes>>

(* `Kernel::drop_at_once` of a capability that its holder let go, or of a session: nobody waits. *)
Drop(c) ==
  LET answer == Apply(f, c) IN
  /\ Between
  /\ answer.out = "revoked-now" /\ Live(answer.f) # Live(f)
  /\ f' = answer.f
  /\ ended' = ended \cup Topmost(answer.f)
  /\ Begin(Kills(Topmost(answer.f)),
           [Job("drop", {}) EXCEPT !.records =
              IF c.op = "revoke" THEN Tombstones(answer.f) \o Revocations(answer.f) ELSE <<>>])
  /\ UNCHANGED <<place, quarantine, born, table, disk, user, returned, refused, crashes>>

SessionEnds ==
  "end-session" \in Ops /\ Drop([op |-> "end-session", vat |-> Home, session |-> Session])
LetGo(i) == "release" \in Ops /\ Drop([op |-> "revoke", vat |-> Home, cap |-> i])

(* `Kernel::reclaim`: slots of the dead are cleared, and free once no guard is left that began
   before. Slots of those that hung below something dead still show their generation. *)
TakeBack ==
  LET dying == Held(f) \ Live(f) IN
  /\ Between /\ dying # {}
  /\ \A j \in pending : j.kind # "reclaim"
  /\ f' = Reclaim(f).f
  /\ quarantine' = quarantine \cup dying
  /\ Begin(Kills(dying) \o LooksAtGuards, Job("reclaim", {}))
  /\ UNCHANGED <<place, born, ended, table, disk, user, returned, refused, crashes>>

SetFree(j) ==
  /\ Between
  /\ j \in pending /\ j.kind = "reclaim"
  /\ Quarantined => j.guards = {}
  /\ f' = Release(f).f
  /\ quarantine' = {}
  /\ pending' = pending \ {j}
  /\ UNCHANGED <<place, born, ended, table, todo, job, journal, user, told, crashes>>

(* A vat that is waited for is killed, or ends by itself. Its guards are gone, its sessions end, and
   it is started again. *)
VatDies ==
  LET answer == VatDied(f, Home, {Session}) IN
  /\ Between
  /\ \E j \in pending : j.guards # {}
  /\ user' = [u \in Users |-> NoUser]
  /\ f' = answer.f
  /\ ended' = ended \cup Topmost(answer.f)
  /\ todo' = Kills(Topmost(answer.f))
  /\ job' = IF todo' = <<>> THEN NoJob ELSE Job("drop", {})
  /\ pending' = {[j EXCEPT !.guards = {}] : j \in pending}
  /\ UNCHANGED <<place, quarantine, born, table, journal, told, crashes>>

(* The kernel ends, and all vats with it. The next boot finds what was durable and any part of what
   was written after it, in a table of its own: its generations are later ones, which no reference
   of an earlier boot fits. *)
Crash ==
  /\ crashes < MaxCrashes
  /\ crashes' = crashes + 1
  /\ \E kept \in 0..Len(tail) :
       LET d == ReplayAll(disk, SubSeq(tail, 1, kept))
           at(i) == Cardinality({k \in d.caps : k <= i}) IN
       /\ disk' = d
       /\ f' = [Empty EXCEPT !.tombs = d.tombs,
                  !.node = [i \in Ids(f) |-> IF i \in d.caps THEN born[i] ELSE Gone]]
       /\ place' = [i \in Ids(f) |-> IF i \in d.caps THEN at(i) ELSE 0]
       /\ table' = [s \in Slots |->
            IF s > Cardinality(d.caps) THEN NewTable[s]
            ELSE LET i == CHOOSE i \in d.caps : at(i) = s
                     p == born[i].parent IN
                 [gen |-> i,
                  parent |-> IF p = 0 THEN Root ELSE [slot |-> at(p), gen |-> p]]]
  /\ tail' = <<>>
  /\ todo' = <<>> /\ job' = NoJob /\ pending' = {} /\ quarantine' = {}
  /\ user' = [u \in Users |-> NoUser]
  /\ UNCHANGED <<born, ended, told>>

-----------------------------------------------------------------------------

Init ==
  /\ f = Empty /\ place = <<>> /\ born = <<>>
  /\ table = NewTable
  /\ todo = <<>> /\ job = NoJob /\ pending = {} /\ quarantine = {}
  /\ disk = [caps |-> {}, tombs |-> {}] /\ tail = <<>>
  /\ user = [u \in Users |-> NoUser]
  /\ acked = {} /\ ended = {} /\ returned = {} /\ refused = {}
  /\ crashes = 0

Uses(u) ==
  \/ \E i \in Ids(f), keeps \in BOOLEAN : Enter(u, i, keeps)
  \/ LoadGeneration(u) \/ LoadParent(u) \/ LoadAgain(u)
  \/ EnterBelow(u) \/ \E at \in user[u].now.path : Compare(u, at)
  \/ Act(u)

Next ==
  \/ \E u \in Users : Uses(u)
  \/ Sync
  \/ Step
  \/ \E c \in Grants : Grant(c)
  \/ \E c \in Ends : Decrease(c)
  \/ \E i \in Ids(f) : RevokeAgain(i) \/ LetGo(i)
  \/ SessionEnds
  \/ \E j \in pending : Publish(j) \/ Return(j) \/ SetFree(j)
  \/ TakeBack
  \/ VatDies
  \/ Crash

(* The kernel and its disk go on, and its loop gets round to every task however many commands come.
   Nothing is asked of users. *)
Fairness ==
  /\ WF_vars(Step) /\ WF_vars(Sync)
  /\ SF_vars(VatDies)
  /\ SF_vars(\E j \in pending : j.kind \in {"end", "again"} /\ Return(j))

Spec == Init /\ [][Next]_vars /\ Fairness

-----------------------------------------------------------------------------
(* Safety *)

TypeOK ==
  /\ Len(place) = Len(f.node) /\ Len(born) = Len(f.node)
  /\ \A i \in Ids(f) : place[i] \in 0..Capacity /\ (i \in Held(f) => place[i] # 0)
  /\ \A s \in Slots : table[s].gen \in 0..MaxCaps /\ table[s].parent.slot \in 0..Capacity
  /\ \A j \in pending : j.guards \subseteq Users /\ j.behind \in 0..Len(tail)
  /\ returned \cup ended \cup acked \cup disk.caps \subseteq Ids(f)

(* C1: nothing in the forest, before or after a crash, can do more than what it came from. *)
C1 == C1_WithinParent(f)

(* C2: when a revocation has returned nobody acts any more, nor is about to, under what it named or
   what came from that: not though the use had begun before. *)
C2_NoUseAfterReturn ==
  \A u \in Users :
    user[u].now.pc = "act" => born[user[u].now.cap].line \cap returned = {}

(* C2: what somebody was told is revoked stays so, and its certificate is refused, be there a crash
   or not. *)
C2_StaysRevoked ==
  /\ \A i \in Live(f) : born[i].line \cap returned = {}
  /\ \A link \in refused : \A chain \in Chains(link[1]) :
       (\E n \in DOMAIN chain : chain[n].link = link) =>
         Redeem(f, Home, link[1], chain, Session).out # "granted"

(* C2: what is dead to the kernel is dead to every reader: nobody can come upon it from then on. *)
C2_NoReaderFindsTheDead == Between => Shown \subseteq Live(f)

(* L2: nothing is found alive before the record of it is durable, nor before that of any durable
   capability above it. *)
L2_NothingBeforeItsRecord ==
  \A i \in Shown : \A j \in born[i].line : born[j].life = "durable" => Recorded(j)

(* L2: a durable capability whose making was answered is there until somebody ends it. *)
L2_AcknowledgedSurvives ==
  \A i \in acked : born[i].life = "durable" => i \in Live(f) \/ born[i].line \cap ended # {}

(* What was answered can be used at once, and as long as it lives. *)
AcknowledgedIsShown == Between => acked \cap Live(f) \subseteq Shown

(* The journal as a whole rebuilds what Forest says outlives the kernel. *)
JournalRebuildsForest ==
  Between =>
    LET d == ReplayAll(disk, tail)  r == Restart(f).f IN
    d.caps = Live(r) /\ d.tombs = r.tombs

(* A slot belongs to one capability at a time, and shows no other when the next one takes it. *)
NoSlotTwice ==
  /\ \A i, j \in Held(f) \cup quarantine : place[i] = place[j] => i = j
  /\ \A n \in DOMAIN todo :
       todo[n].op = "parent" => table[place[todo[n].cap]].gen \in {0, todo[n].cap}
  /\ SlotsAddUp(f) /\ f.quarantined = Cardinality(quarantine)

-----------------------------------------------------------------------------
(* Liveness *)

(* A revocation returns, whatever users do, unless the kernel crashes. *)
C2_RevocationReturns ==
  \A n \in 1..MaxCaps :
    (\E j \in pending \cup {job} : j.kind \in {"end", "again"} /\ n \in j.caps)
      ~> (n \in returned \/ crashes > 0)
=============================================================================
