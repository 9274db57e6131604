-------------------------------- MODULE Gpu --------------------------------
(***************************************************************************)
(* Who may touch which part of a GPU, and whose bytes are in it.           *)
(*                                                                         *)
(* A GPU's memory is made of slices; the service cuts it into partitions   *)
(* (MIG), leases them to tenants, and gives none on before it was fenced,  *)
(* scrubbed and verified:                                                  *)
(*                                                                         *)
(*   dirty --Look--> fenced --Scrub--> scrubbed --Verify--> clean          *)
(*     ^                \_____________________________\                    *)
(*     |                                               v                   *)
(*     +--End-- leased <--Acquire-- clean         quarantined              *)
(*                                                                         *)
(*   G1  two tenants never share a partition                               *)
(*   M1  no tenant sees a slice that holds another's bytes                 *)
(*                                                                         *)
(* Three parties. The hardware: slices, what is in them, which partitions  *)
(* exist, which processes have them open. The host, which starts and kills *)
(* processes: who is permitted to open a partition's device node, and      *)
(* until when. The service: its memory is lost in a crash, all but `mark`, *)
(* one durable bit a slice that says it was verified and not lent since;   *)
(* what is not marked is dirty.                                            *)
(*                                                                         *)
(* Tenants' processes open whatever they are permitted to, write whenever  *)
(* they have it open, and stay after the lease and after the permission    *)
(* until they are killed. Service and node crash between any two steps. A  *)
(* scrub may erase only part of a partition and say that it was all.       *)
(*                                                                         *)
(* Properties speak of the hardware (holder, opened) and of the host's     *)
(* permissions, never of what the service believes.                        *)
(*                                                                         *)
(* Not modelled: state outside of memory slices (caches, registers), other *)
(* channels between partitions, a driver that gives access without its     *)
(* device node, a verification that reads wrongly, quota and policy.       *)
(***************************************************************************)
EXTENDS Naturals, FiniteSets

CONSTANTS
  Tenants,    \* "nobody" is none of them
  Slices,
  Shapes,     \* the partitions that can be made: sets of slices
  LeaseMs,    \* how long a lease lasts
  Skew,       \* how far the host's clock may be behind the service's
  MaxTime, MaxCrashes   \* bounds of the instance, in Next and TypeOK alone

VARIABLES
  now,        \* the service's clock
  crashes,    \* how many there were
  \* Hardware.
  holder,     \* slice -> whose bytes are in it, or "nobody"
  made,       \* the partitions that exist
  opened,     \* {<<tenant, partition>>}: a process of the tenant has it open
  \* Host.
  permitted,  \* {[tenant, part, until]}: may open it
  \* Service: `phase` and `lease` are lost in a crash, `mark` is durable.
  phase,      \* partition -> its place in the picture above; "absent" if it is not made
  lease,      \* partition -> [tenant, until]
  mark        \* the slices that were verified and not lent since

hardware == <<holder, made, opened>>
service  == <<phase, lease, mark>>
vars     == <<now, crashes, hardware, permitted, service>>

Phases  == {"absent", "dirty", "fenced", "scrubbed", "clean", "leased", "quarantined"}
NoLease == [tenant |-> "nobody", until |-> 0]

Untils  == 0..(MaxTime + LeaseMs)

TypeOK ==
  /\ now \in 0..MaxTime /\ crashes \in 0..MaxCrashes
  /\ holder \in [Slices -> Tenants \cup {"nobody"}]
  /\ made \subseteq Shapes
  /\ opened \subseteq Tenants \X Shapes
  /\ permitted \subseteq [tenant : Tenants, part : Shapes, until : Untils]
  /\ phase \in [Shapes -> Phases]
  /\ lease \in [Shapes -> [tenant : Tenants \cup {"nobody"}, until : Untils]]
  /\ mark \subseteq Slices

\* What was before is unknown: any slice may hold any tenant's bytes.
Init ==
  /\ now = 0 /\ crashes = 0
  /\ holder \in [Slices -> Tenants \cup {"nobody"}]
  /\ made = {} /\ opened = {} /\ permitted = {}
  /\ phase = [p \in Shapes |-> "absent"]
  /\ lease = [p \in Shapes |-> NoLease]
  /\ mark = {}

-----------------------------------------------------------------------------
(* Tenants' processes.                                                     *)

Open(t, p) ==
  /\ p \in made
  /\ \E g \in permitted : g.tenant = t /\ g.part = p
  /\ opened' = opened \cup {<<t, p>>}
  /\ UNCHANGED <<now, crashes, holder, made, permitted, service>>

Write(t, p) ==
  /\ <<t, p>> \in opened
  /\ holder' = [s \in Slices |-> IF s \in p THEN t ELSE holder[s]]
  /\ UNCHANGED <<now, crashes, made, opened, permitted, service>>

-----------------------------------------------------------------------------
(* The host. It ends permissions by its own clock, which is up to Skew     *)
(* behind, whether the service lives or not; killing may take any time.    *)

Tick(lag) ==
  /\ now' = now + 1
  /\ permitted' = {g \in permitted : now + 1 < g.until + lag}
  /\ UNCHANGED <<crashes, hardware, service>>

\* A process exits or is killed.
Gone(t, p) ==
  /\ opened' = opened \ {<<t, p>>}
  /\ UNCHANGED <<now, crashes, holder, made, permitted, service>>

-----------------------------------------------------------------------------
(* The service: services/gpu/src/state.rs.                                 *)

SetPhase(p, to) == phase' = [phase EXCEPT ![p] = to]

\* A new partition is clean if each of its slices is marked, and dirty otherwise.
Found(p) == IF p \subseteq mark THEN "clean" ELSE "dirty"

Create(p) ==
  /\ \A q \in made : p \cap q = {}
  /\ made' = made \cup {p}
  /\ SetPhase(p, Found(p))
  /\ UNCHANGED <<now, crashes, holder, opened, permitted, lease, mark>>

\* The driver refuses while a process has it open. A permission that stayed would hold for the next
\* partition of this name.
Destroy(p) ==
  /\ phase[p] \in {"dirty", "fenced", "scrubbed", "clean"}
  /\ \A t \in Tenants : <<t, p>> \notin opened
  /\ \A g \in permitted : g.part # p
  /\ made' = made \ {p}
  /\ SetPhase(p, "absent")
  /\ UNCHANGED <<now, crashes, holder, opened, permitted, lease, mark>>

\* First in the service's state,
Acquire(t, p) ==
  /\ phase[p] = "clean"
  /\ SetPhase(p, "leased")
  /\ lease' = [lease EXCEPT ![p] = [tenant |-> t, until |-> now + LeaseMs]]
  /\ UNCHANGED <<now, crashes, hardware, permitted, mark>>

\* then durably,
Unmark(p) ==
  /\ phase[p] = "leased"
  /\ mark' = mark \ p
  /\ UNCHANGED <<now, crashes, hardware, permitted, phase, lease>>

\* and only then in the world. After a renewal the host is told the new end.
Permit(p) ==
  /\ phase[p] = "leased" /\ now < lease[p].until
  /\ p \cap mark = {}
  /\ permitted' = {g \in permitted : g.part # p}
                  \cup {[tenant |-> lease[p].tenant, part |-> p, until |-> lease[p].until]}
  /\ UNCHANGED <<now, crashes, hardware, service>>

Renew(p) ==
  /\ phase[p] = "leased" /\ now < lease[p].until
  /\ lease' = [lease EXCEPT ![p].until = now + LeaseMs]
  /\ UNCHANGED <<now, crashes, hardware, permitted, phase, mark>>

\* Released, revoked (both at any time) or expired. The tenant's processes go on.
End(p) ==
  /\ phase[p] = "leased"
  /\ SetPhase(p, "dirty")
  /\ lease' = [lease EXCEPT ![p] = NoLease]
  /\ UNCHANGED <<now, crashes, hardware, permitted, mark>>

\* Whatever it knows, the service has all permissions on a dirty partition withdrawn and what has it
\* open killed (Gone).
Withdraw(p) ==
  /\ phase[p] = "dirty"
  /\ permitted' = {g \in permitted : g.part # p}
  /\ UNCHANGED <<now, crashes, hardware, service>>

\* Nobody may open it and nobody has: in this order, for a process may start anew until it is forbidden.
Look(p) ==
  /\ phase[p] = "dirty"
  /\ \A g \in permitted : g.part # p
  /\ \A t \in Tenants : <<t, p>> \notin opened
  /\ SetPhase(p, "fenced")
  /\ UNCHANGED <<now, crashes, hardware, permitted, lease, mark>>

\* Erases some of the slices: all, if it went well.
Scrub(p, erased) ==
  /\ phase[p] \in {"fenced", "scrubbed"}
  /\ holder' = [s \in Slices |-> IF s \in erased THEN "nobody" ELSE holder[s]]
  /\ SetPhase(p, "scrubbed")
  /\ UNCHANGED <<now, crashes, made, opened, permitted, lease, mark>>

\* Reads the whole partition back.
Verify(p) ==
  /\ phase[p] = "scrubbed"
  /\ \A s \in p : holder[s] = "nobody"
  /\ SetPhase(p, "clean")
  /\ mark' = mark \cup p
  /\ UNCHANGED <<now, crashes, hardware, permitted, lease>>

\* It could not be fenced in time, or not be scrubbed: nobody gets it in this life of the service.
Quarantine(p) ==
  /\ phase[p] \in {"dirty", "fenced", "scrubbed"}
  /\ SetPhase(p, "quarantined")
  /\ UNCHANGED <<now, crashes, hardware, permitted, lease, mark>>

-----------------------------------------------------------------------------
(* Crashes, at any point.                                                  *)

\* Tenants' processes and permissions outlive the service; it finds the partitions in the hardware.
ServiceCrash ==
  /\ crashes' = crashes + 1
  /\ phase' = [p \in Shapes |-> IF p \in made THEN Found(p) ELSE "absent"]
  /\ lease' = [p \in Shapes |-> NoLease]
  /\ UNCHANGED <<now, hardware, permitted, mark>>

\* Every process ends, partitions are gone, and memory keeps what it held.
NodeCrash ==
  /\ crashes' = crashes + 1
  /\ made' = {} /\ opened' = {} /\ permitted' = {}
  /\ phase' = [p \in Shapes |-> "absent"]
  /\ lease' = [p \in Shapes |-> NoLease]
  /\ UNCHANGED <<now, holder, mark>>

\* What is durable may be lost or deleted too: then nothing is remembered, which means dirty.
MarkLost(s) ==
  /\ mark' = mark \ {s}
  /\ UNCHANGED <<now, crashes, hardware, permitted, phase, lease>>

Next ==
  \/ now < MaxTime /\ \E lag \in 0..Skew : Tick(lag)
  \/ \E p \in Shapes :
       \/ \E t \in Tenants : Acquire(t, p) \/ Open(t, p) \/ Write(t, p) \/ Gone(t, p)
       \/ Create(p) \/ Destroy(p)
       \/ Unmark(p) \/ Permit(p) \/ Renew(p) \/ End(p)
       \/ Withdraw(p) \/ Look(p) \/ Verify(p) \/ Quarantine(p)
       \/ \E erased \in SUBSET p : Scrub(p, erased)
  \/ \E s \in Slices : MarkLost(s)
  \/ crashes < MaxCrashes /\ (ServiceCrash \/ NodeCrash)

Spec == Init /\ [][Next]_vars

-----------------------------------------------------------------------------
\* Has it open, or could open it this moment.
Touches(t, p) ==
  /\ p \in made
  /\ \/ <<t, p>> \in opened
     \/ \E g \in permitted : g.tenant = t /\ g.part = p

G1_TwoTenantsNeverShare ==
  \A t, u \in Tenants, p, q \in Shapes :
    Touches(t, p) /\ Touches(u, q) /\ p \cap q # {} => t = u

M1_NobodySeesAnothersBytes ==
  \A t \in Tenants, p \in Shapes :
    Touches(t, p) => \A s \in p : holder[s] \in {t, "nobody"}

\* Clean is what holds nothing and what nobody can touch, now or after a crash.
G1_CleanIsScrubbedAndUntouched ==
  \A s \in Slices :
    s \in mark \/ (\E p \in Shapes : phase[p] = "clean" /\ s \in p) =>
      /\ holder[s] = "nobody"
      /\ \A t \in Tenants, p \in Shapes : s \in p => ~Touches(t, p)

\* A permission ends with its lease, though the service is gone.
G1_PermissionEndsWithLease ==
  \A g \in permitted : now < g.until + Skew
=============================================================================
