@0xd5c1a7e0b3f2460a;
# Who is who on the network, and whom this node lets in, served by the network service.

using Cap = import "capability.capnp";
using Attestation = import "attestation.capnp";

struct Peer {
  name     @0 :Text;  # "node/N" or "tenant/T".
  address  @1 :Text;  # Where its network service listens, "HOST:PORT" in numbers; empty if it need not be asked.
  invitedS @2 :UInt64; # If it was invited and has not come yet: until when it may, in seconds since the Unix epoch.
  heardMs  @3 :UInt64 = 0xffffffffffffffff;
                       # How long ago it said that it is there, in milliseconds; all ones if it has not since
                       # this service was started.
  suspect  @4 :Bool;   # Nothing was heard of it for 15 seconds, or for six and it is not reached.
  bundle   @5 :UInt64; # The number of its bundle, as it said; 0 if unknown.
  letIn    @6 :Bool;   # Whether this node lets it in.
  admit    @7 :UInt32; # How many of the cluster's voters are for a node.
  remove   @8 :UInt32; # And how many are against it.
  putOut   @9 :Bool;   # Whether it was put out here, by this node's operator or for its evidence, whoever is for it.
  standing @10 :Text;  # What this node's verifier says of its evidence: "fresh", "stale", "expired" or "failed";
                       # empty if it has said nothing.
}

struct Attending {
  service  @0 :Text;   # The vat.
  current  @1 :Bool;   # Whether it lets in whom this node lets in now.
  untilS   @2 :UInt64; # Until when its SVID holds, in seconds since the Unix epoch; 0 without one.
}

struct Status {
  node      @0 :Data;            # This node's number.
  key       @1 :Data;            # The key that the network service's SVID is for.
  issuerKey @2 :Data;            # The key with which it signs SVIDs for other nodes.
  address   @3 :Text;            # Where it listens; empty if the image gives it no socket.
  id        @4 :Text;            # Its SPIFFE id; empty before the node has joined a cluster.
  untilS    @5 :UInt64;          # Until when its SVID holds, in seconds since the Unix epoch.
  bundle    @6 :UInt64;          # The bundle's number.
  issues    @7 :Bool;            # Whether it signs for other nodes.
  services  @8 :List(Attending);
  configuration @9 :Text;        # The cluster's, as its root has signed it (JSON); empty without one.
  tokenKey  @10 :Data;           # The key with which it signs tokens for tenants' agents (P-256, compressed).
  tokens    @11 :Bool;           # Whether the bundle names that key, so that others take such tokens.
}

struct Summary {
  # What somebody has heard, in short: the same for two who have heard the same.
  configuration @0 :UInt64; # The configuration's number; 0 without one.
  votes         @1 :Data;   # BLAKE3 of the configuration's BLAKE3 hash, the voters and their digests, in order.
  homes         @2 :Data;   # BLAKE3 of the homes of revocations and their digests, in order: of homes that this
                            # node lets in, so that it is another at nodes that let others in.
}

struct Known {
  # What somebody has heard of one voter, or of what was revoked at one home.
  node   @0 :Data;  # The voter's node, or the home.
  digest @1 :Data;  # BLAKE3 of the BLAKE3 hashes of its votes, in the order of the nodes that they speak of; or of those
                    # of the revocations, in the order of the links that they end, the issuer's first.
}

interface Heard {
  # What a node has heard that its cluster's root and voters, and whoever revoked something, have signed. It does not matter from whom it comes:
  # whoever hears it verifies it, and nobody is made to believe what they did not say.

  heard @0 (seen :Summary) -> (summary :Summary, known :List(Known), homes :List(Known));
  # In short. Resolves once it differs from `seen`, and after five seconds in any case; at once to whoever has seen
  # nothing (no `votes`), and to other nodes.
  configuration @1 () -> (configuration :Text);
  # The cluster's, as its root has signed it (JSON); empty without one.
  votes @2 (known :List(Known), after :Data) -> (votes :List(Data), after :Data);
  # Votes, each with its voter's signature, of voters of whom whoever asks has heard something else than this node.
  # If there are more, `after` says where to go on (64 bytes: a voter, and a node of which it has said something); it
  # is empty at the first and after the last.
  revocations @3 (known :List(Known), after :Data) -> (revocations :List(Data), after :Data);
  # Revocations that are on their way to their homes, for homes of which whoever asks has heard something else than
  # this node. `known` are such homes; `after` is as with `votes` (65 bytes: a home, a link,
  # and 0 for its issuer or 1 for its holder).
}

struct Register {
  pcr   @0 :UInt8;
  value @1 :Data;            # SHA-256, 32 bytes.
}

interface Network extends(Cap.Capability, Heard) {
  # To ask for what it has heard needs "read".

  status @0 () -> (status :Status);
  # Needs "read".
  join @1 (bundle :Text, chain :List(Data)) -> ();
  # Needs "admin". Durable. `bundle` is a SPIFFE bundle, `chain` the network service's SVID (DER, its own
  # certificate first), which is renewed from then on. A bundle of another cluster, or with a smaller number
  # than the present one, is refused.
  certify @2 (certificate :Data) -> ();
  # Needs "admin". Durable. Makes this node an issuer for the others: the root's certificate (DER) for
  # `issuerKey`, with this node as its home.
  peers @3 () -> (peers :List(Peer));
  # Needs "list".
  addPeer @4 (peer :Peer) -> (behind :List(Text));
  # Needs "admin". Durable. Lets it in from now on; replaces its address if it is in the list. `behind`
  # are services that have not said in time that they know. Where the cluster votes on its nodes, this is this
  # node's vote for one, if it has any; whether that one is let in, `peers` says.
  removePeer @5 (name :Text) -> (behind :List(Text));
  # Needs "admin". Durable. When it returns, its connections to all services that hold credentials but those `behind` are
  # closed, and nothing that it sent and that was not read will be. Fails: "not-found", "malformed" (it is put out
  # here, and this node could not vote). Where the cluster votes, this is
  # this node's vote against a node, too; `behind` then names those nodes ("node/N") that have not said in time that they have heard it.
  rotate @6 () -> (key :Data);
  # Needs "admin". Durable. Changes the key of the network service's SVID for a new one, which another node
  # signs; connections go on. The issuer's key stays: the root has signed that. Fails: "unavailable" (no other
  # node signs now).
  invite @7 (node :Data, key :Data, lifetimeS :UInt32) -> (bundle :Text, chain :List(Data));
  # Needs "admin". Durable. What the network service of another node needs to join: an SVID for its `key`
  # alone, and a place in the list, which ends with the SVID unless the node has come by then. Fails: "unavailable"
  # (this node is no issuer), "exists" (the node is in the list, and not only invited), "unauthenticated" (the image has it that
  # nodes are invited by their TPMs alone).
  configure @8 (configuration :Text) -> (behind :List(Text), out :List(Text));
  # Needs "admin". Durable. Goes by this configuration of the cluster (JSON) from now on, and tells others of it.
  # `out` are the nodes that this one let in before and does not any more. Fails: "unauthenticated" (no root of the
  # cluster has signed it), "malformed" (it is older than the present one).
  agents @9 (tenant :Text) -> (agents :Agents, chain :Data);
  # Needs "admin". Durable. The power to be one of this tenant's agents, to be handed to it; `chain` is the same as
  # bytes, for the key of whoever asks. Revoking the capability by which this was called ends it.
  bundle @10 () -> (bundle :Text);
  # Needs "read". The cluster's, as SPIFFE has it. Fails: "unavailable" (this node is in no cluster).
  offer @11 (configuration :Text, votes :List(Data), revocations :List(Data)) -> ();
  # Needs "write". Durable. What the cluster's root and voters, and whoever revoked something, have signed, and somebody
  # has heard elsewhere: at most 256 votes, 32 revocations, and a configuration (JSON) if there is one. This node takes what is newer than what it has. Fails if there
  # was something of which it could make nothing; the rest counts all the same: "unauthenticated", "malformed",
  # "unavailable" (there was too much).
  carry @12 (revocation :Data) -> (ended :Bool);
  # Needs "write". Durable. Takes a revocation that somebody has signed (docs/foreign.md), and brings it to the home of
  # what it ends: by this node, by others that hear of it, or by a store that nodes share, until that home has heard
  # it. `ended`: it has, and nothing that it ends has an effect there any more. Fails: "unauthenticated" (whoever
  # signed it may not end that), "expired", "not-found" (this node lets no such home in), "unavailable" (192 are
  # kept for that home, or 32 that this tenant has left here).
  challenge @13 (node :Data, lifetimeS :UInt32) -> (nonce :Data);
  # Needs "admin". 32 random bytes that `node` is to answer who wants to be invited by its TPM: good for one invitation,
  # for a day at most, and forgotten when this service is restarted. Fails: "unavailable" (64 are open).
  inviteAttested @14 (request :Text, ek :Data, references :List(Register), address :Text, lifetimeS :UInt32,
          hardwareMakers :List(Data), softwareMakers :List(Data), revoked :List(Data))
      -> (node :Data, sealed :Text, registers :List(Register), tpm :Text);
  # Needs "admin". Durable. As `invite`, for a node that has presented what its TPM says (`Attestation.present`): the
  # invitation, for the reader to come to `address` ("HOST:PORT" in numbers), sealed to that TPM. `ek` is the name of the TPM's
  # endorsement key, as whoever has the machine in hand has told, or empty. The makers are certificates (DER) of whose
  # TPMs are taken, by what whoever pins them says that they are: those that name themselves as their issuer are roots,
  # the others may stand between. `revoked` are lists of certificates, and OCSP responses (DER); at most 512 of all three,
  # of 1 MiB. If there is a root, the key's certificate is to lead to one. One of both is demanded, and each that is there.
  # `references` is what registers hold; 11, the image's, is to be among them. `registers` is all that were quoted, and
  # `tpm` what the certificate shows, for people; empty if none was demanded.
  # Fails: as `invite`, and "unauthenticated" (what was expected and is not so).
  homes @15 () -> (nodes :List(Data));
  # Needs "read". The nodes that are let in now, and this one: for others no revocations are taken.
}

interface Agents extends(Cap.Capability) {
  # The power to be one of a tenant's agents: each by the key with which it holds this, which restoring it has
  # shown. Whoever passes it on makes another agent of the same tenant, and can take that back: what was signed
  # until then holds until its time is over.

  sign @0 () -> (id :Text, chain :List(Data), bundle :Text);
  # Needs "read". An SVID for this key (DER, its own certificate first), and the cluster's bundle. It holds no longer
  # than this capability. Fails: "unavailable" (this node is in no cluster, or no issuer).
  token @1 (audiences :List(Text)) -> (id :Text, token :Text, untilS :UInt64);
  # Needs "create". A JWT SVID, for those that go by these names. Whoever sees it can show it to them until its time
  # is over, in seconds since the Unix epoch: in five minutes. Fails: "unavailable" (in no cluster, or the bundle does not name
  # this node's key for tokens), "malformed" (it would be for nobody, or for too many).
  carry @2 (revocation :Data) -> (ended :Bool);
  # Needs "read". As `Network.carry`: what a tenant ends whose home it does not reach.
}

struct Question {
  # What another node's verifier asks of this one's machine.
  id       @0 :UInt64;
  verifier @1 :Data;     # The node that asks, which the connection has authenticated.
  key      @2 :Data;     # The key of this node's SVID on that connection: what the evidence is to be bound to.
  question @3 :Data;     # As `caps/evidence` has it; at most 16 KiB.
  life     @4 :Data;     # What stands for this network service since it was started, for that verifier: the same. 32 bytes.
}

struct Answered {
  id     @0 :UInt64;
  answer @1 :Data;       # At most 1 MiB, and 8 MiB in one call.
  fault  @2 :Text;       # A fault line in the place of an answer; empty if there is one.
}

struct Judgement {
  # What this node's verifier says of a node, until it says something else.
  node     @0 :Data;
  standing @1 :Attestation.Standing;
  untilS   @2 :UInt64;   # Nothing that is signed for it holds longer; seconds since the Unix epoch.
  epoch    @3 :UInt64;   # How often its evidence has turned bad.
  reason   @4 :Text;     # Why it is not fresh, or empty.
  key      @5 :Data;     # To which key of its network service's SVID the last good evidence was bound: to connections with another
                         # nothing is signed for its services. Empty if there is none.
  life     @6 :Data;     # And to which life of that service; empty with the key.
}

struct Since {
  # A node that was invited.
  node @0 :Data;
  atS  @1 :UInt64;  # When, in seconds since the Unix epoch.
}

struct NodeEpoch {
  # How often a node's evidence has turned bad, or it was put out, as this node knows it.
  node   @0 :Data;
  number @1 :UInt64;
}

interface Credentials extends(Cap.Capability) {
  # What a service of this node asks for, in its own name: the network service knows whose edge this is.

  sign @0 (key :Data, proof :Data) -> (id :Text, chain :List(Data));
  # Needs "read". An SVID for `key`, which made the signature `proof`, signed by another node's issuer.
  # Fails: "unavailable" (in no cluster yet, or no issuer can be reached).
  trust @1 (seen :UInt64, port :UInt16)
      -> (revision :UInt64, bundle :Text, peers :List(Text), hybridOnly :Bool, since :List(Since),
          freshS :UInt64, epochs :List(NodeEpoch));
  # Needs "read". Whom to let in. Resolves once that differs from what was current at revision `seen`;
  # 0 is none. Whoever asks with a revision has put it into effect. `port` is the UDP port at which it
  # lets them in, and 0 if it lets nobody in: other nodes' services are told it. With `hybridOnly`, no connection
  # is to be whose keys were not agreed on with X25519MLKEM768. Of the nodes in `since`, SVIDs that hold from before
  # then are not to be taken. An SVID of the caller's own from before `freshS` others may not take: it is to ask for another.
  # What a node holds of the caller's objects that was given to it at a lower epoch than the one in `epochs` has ended, and so
  # have its connections. Nodes that are not in there are at 0; it never goes back.
  locate @2 (node :Data, service :Text) -> (address :Text);
  # Needs "read". Where a service of another node listens, "HOST:PORT" in numbers, as that node's network
  # service says. Nothing is to be believed of whoever answers there but what its handshake shows. Fails:
  # "not-found" (no such peer, or it has no such service), "unavailable" (it does not answer).
  contact @3 () -> (voters :UInt32, heard :UInt32);
  # Needs "read". How many vote on the cluster's nodes, and how many of them this node hears: itself, if it is one,
  # and those that are not suspect. 0 of 0 where the cluster does not vote.
  revocations @4 (seen :Data, ended :List(Data)) -> (digest :Data, revocations :List(Data));
  # Needs "read". What others have signed that ends something at the vat that asks: all that is kept of it, at most 256.
  # Resolves once its digest (as in `Known`) differs from `seen`; empty is none. `ended` are the hashes (BLAKE3 in its
  # key derivation mode, docs/foreign.md) of those of which nothing has an effect any more.
  questions @5 (answered :List(Answered)) -> (questions :List(Question));
  # Needs "attest". What verifiers of other nodes ask: resolves once there is something, and after five seconds in any case. One
  # question is given out once; whoever took it answers with the next call, within 30 seconds.
  ask @6 (node :Data, question :Data) -> (answer :Data, key :Data, life :Data);
  # Needs "attest". Asks another node's machine, by way of both network services. `key` is that of the node's SVID on the
  # connection over which the answer came, `life` what its network service has said there that stands for it. Fails: "not-found" (no such peer), "unavailable" (it is not reached, or does
  # not answer in time), and as the other side says.
  judge @7 (judgements :List(Judgement)) -> (epochs :List(UInt64));
  # Needs "attest". What follows from it this node does at once, where the image demands evidence: it signs for no node that is not
  # fresh, and nothing that holds longer than `untilS`, except for its network service, by which it is asked, as long as it is
  # not expired; one that has failed is put out. Who is let in again after that is judged anew: by evidence from then on.
  # Nodes that are not let in, and of which nothing is kept, are passed over. What is said of a node at an epoch before the
  # one that is known does not count, unless it is bad. `epochs` are those that are known then, in the same order: a verifier
  # that has lost what it knew goes on from there.
  attested @8 (seen :UInt64) -> (revision :UInt64, nodes :List(Data), again :List(Data));
  # Needs "attest". The nodes that this one is to verify: its peers, if it signs for others. Resolves once that differs from
  # what was current at revision `seen` (0 is none), or one is to be asked at once: it is in `again`, once, because its network
  # service has come with another key than that to which its evidence is bound, or was started since.
}

interface Member extends(Heard) {
  # What a node's network service offers to that of another node, over the connection between both.

  sign @0 (service :Text, key :Data, proof :Data, token :Data) -> (chain :List(Data));
  # An SVID for a service of the node at the other end, which the connection has authenticated. `token` is what the other
  # network service has made for this node when it was started and never kept (32 bytes): its hash is the `life` to which
  # evidence is bound, so that whoever comes with its key after a reboot answers for that boot first. Fails:
  # "unauthenticated" (`proof` is not by `key`), "unavailable" (it is no issuer), "stale-attestation" (evidence is
  # demanded, and the node's is not fresh, or the issuer's own is expired or has failed).
  locate @1 (service :Text) -> (port :UInt16);
  # The UDP port at which a service of this node lets its peers in. Fails: "not-found".
  tell @2 (statement :Data, signature :Data, chain :List(Data)) -> (summary :Summary);
  # What a node says and signs with the key of its network service's SVID (`chain`, DER, its own certificate
  # first), over whatever connection it comes: that it is there, or how it votes. Heard once, and only by whom it is
  # for. The answer is what this node has heard.
  # Fails: "unauthenticated" (changed, another's, heard before, or from a clock that differs by more than five
  # minutes), "unavailable" (it has to catch up first, or there was too much; it will ask), "malformed".
  gossip @3 (message :Data) -> ();
  # Whom others reach (SWIM): asks whether a node is there, or says who is and who is not, in the sender's own name. Of
  # what it says of others nothing is believed; whoever hears that one is gone looks for itself. At most 4096 bytes.
  carry @4 (revocation :Data) -> (ended :Bool);
  # A revocation of something whose home this node is. As `Network.carry`.
  evidence @5 (question :Data) -> (answer :Data, life :Data);
  # Asks this node's machine, in the name of the node at the other end. The answer is bound to the key of this node's SVID on
  # this connection, and to `life`: the hash of the token that this one shows when it has something signed. Fails: "unavailable" (nobody here answers, or not
  # in time; four questions of that node wait), "malformed".
}
