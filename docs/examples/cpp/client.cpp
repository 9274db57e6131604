// A DistOS client in C++, with the Cap'n Proto of Debian 12: what a tenant does with its capability
// file. It takes the same steps as ../python/client.py, in the same order.

#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <blake3.h>
#include <capnp/ez-rpc.h>
#include <kj/main.h>
#include <sodium.h>

#include "capability.capnp.h"
#include "memory.capnp.h"

namespace {

using Bytes = std::vector<uint8_t>;
using Hash = std::array<uint8_t, BLAKE3_OUT_LEN>;

constexpr uint32_t PAGE = PAGE_BYTES;  // From memory.capnp.
constexpr uint32_t PAGES = 4;
constexpr uint64_t RIGHT_READ = 0x1;  // docs/faults.md lists the bits.
constexpr uint64_t RIGHT_WRITE = 0x2;

// Something is not as it should be.
struct Unexpected : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A refusal by DistOS (docs/faults.md): its name and fields are stable, its text is for people.
struct Fault {
  std::string name;
  std::map<std::string, std::string> fields;
  std::string text;

  // The fault in an exception's reason, `distos:NAME;KEY=VALUE;…: TEXT`; none if it is no refusal
  // of DistOS.
  static std::optional<Fault> of(const kj::Exception& error) {
    std::string reason = error.getDescription().cStr();
    const std::string prefix = "distos:";
    auto start = reason.find(prefix);
    if (start == std::string::npos) return std::nullopt;
    start += prefix.size();
    auto end = reason.find(": ", start);
    if (end == std::string::npos) return std::nullopt;
    std::istringstream words(reason.substr(start, end - start));
    Fault fault;
    std::getline(words, fault.name, ';');
    for (std::string word; std::getline(words, word, ';');) {
      auto equals = word.find('=');
      if (equals != std::string::npos) fault.fields[word.substr(0, equals)] = word.substr(equals + 1);
    }
    fault.text = reason.substr(end + 2);
    return fault;
  }

  // For people.
  std::string line() const { return text.rfind(name, 0) == 0 ? text : name + ": " + text; }
};

void say(const std::string& line) { std::cout << line << std::endl; }

// Something that this program can tell for itself.
void check(const std::string& what, bool holds) {
  if (!holds) throw Unexpected("not so: " + what);
  say("✓ " + what);
}

// Waits for an answer that must be the fault `name` with these fields.
template <typename Promise>
void refused(const std::string& what, Promise&& promise, kj::WaitScope& scope, const std::string& name,
             const std::map<std::string, std::string>& fields = {}) {
  std::optional<Fault> fault;
  try {
    promise.wait(scope);
  } catch (const kj::Exception& error) {
    fault = Fault::of(error);
    if (!fault) throw;
  }
  if (!fault) throw Unexpected(what + ": expected " + name + ", and it was allowed");
  auto has = [&](const auto& field) {
    auto found = fault->fields.find(field.first);
    return found != fault->fields.end() && found->second == field.second;
  };
  if (fault->name != name || !std::all_of(fields.begin(), fields.end(), has)) {
    throw Unexpected(what + ": expected " + name + ", got " + fault->line());
  }
  say("✓ " + what + ": " + fault->line());
}

Hash blake3(const void* data, size_t size) {
  Hash hash;
  blake3_hasher hasher;
  blake3_hasher_init(&hasher);
  blake3_hasher_update(&hasher, data, size);
  blake3_hasher_finalize(&hasher, hash.data(), hash.size());
  return hash;
}

// Of bytes in lower-case digits.
template <typename Container>
std::string hex(const Container& bytes) {
  std::string out(bytes.size() * 2 + 1, '\0');
  sodium_bin2hex(out.data(), out.size(), bytes.data(), bytes.size());
  out.pop_back();
  return out;
}

Bytes unhex(const std::string& digits) {
  Bytes out(digits.size() / 2);
  size_t length = 0;
  if (digits.size() % 2 != 0 || sodium_hex2bin(out.data(), out.size(), digits.data(), digits.size(),
                                               nullptr, &length, nullptr) != 0 || length != out.size()) {
    throw Unexpected("expected hexadecimal digits: " + digits.substr(0, 8) + "…");
  }
  return out;
}

Bytes bytes(capnp::Data::Reader data) { return Bytes(data.begin(), data.end()); }
capnp::Data::Reader as_data(const Bytes& bytes) { return kj::arrayPtr(bytes.data(), bytes.size()); }

std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) throw Unexpected("there is no " + path.string());
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) {
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(line);
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  return lines;
}

const std::string CAP_HEADER = "distos capability file v1";
const std::string KEY_HEADER = "distos holder secret v1";

// A capability file (docs/foreign.md): the node, where its sockets were, and chains by name.
struct CapFile {
  Bytes node;
  std::string sockets;
  std::vector<std::pair<std::string, Bytes>> entries;

  static CapFile read(const std::filesystem::path& path) {
    auto lines = lines_of(path);
    if (lines.size() < 3 || lines[0] != CAP_HEADER) {
      throw Unexpected(path.string() + " is no capability file of version 1");
    }
    std::string above;
    for (size_t at = 0; at + 1 < lines.size(); at++) above += lines[at] + "\n";
    if (lines.back() != "check: " + hex(blake3(above.data(), above.size()))) {
      throw Unexpected(path.string() + " is damaged: its check does not match");
    }
    CapFile file;
    std::vector<std::pair<std::string, std::string>> digits;
    for (size_t at = 1; at + 1 < lines.size(); at++) {
      const auto& line = lines[at];
      if (at == 1 && line.rfind("node: ", 0) == 0) {
        file.node = unhex(line.substr(6));
      } else if (at == 2 && line.rfind("sockets: ", 0) == 0) {
        file.sockets = line.substr(9);
      } else if (line.size() > 2 && line.front() == '[') {
        digits.emplace_back(line.substr(1, line.size() - 2), "");
      } else if (!digits.empty()) {
        digits.back().second += line;
      }
    }
    for (const auto& [name, chain] : digits) file.entries.emplace_back(name, unhex(chain));
    return file;
  }

  std::string text() const {
    std::string text = CAP_HEADER + "\nnode: " + hex(node) + "\nsockets: " + sockets + "\n";
    for (const auto& [name, chain] : entries) {
      text += "[" + name + "]\n";
      auto digits = hex(chain);
      for (size_t at = 0; at < digits.size(); at += 76) text += digits.substr(at, 76) + "\n";
    }
    return text + "check: " + hex(blake3(text.data(), text.size())) + "\n";
  }

  const Bytes& find(const std::string& name) const {
    for (const auto& entry : entries) {
      if (entry.first == name) return entry.second;
    }
    throw Unexpected("the capability file holds no [" + name + "]: a tenant's own file does");
  }
};

// The key pair of a secret key file: a header line, then the seed in 64 hexadecimal digits.
class Secret {
public:
  explicit Secret(const std::filesystem::path& path) {
    auto lines = lines_of(path);
    if (lines.size() < 2 || lines[0].rfind(KEY_HEADER, 0) != 0 || lines[1].size() != 64) {
      throw Unexpected(path.string() + " is no secret key file of version 1");
    }
    auto seed = unhex(lines[1]);
    std::array<uint8_t, crypto_sign_PUBLICKEYBYTES> key;
    crypto_sign_seed_keypair(key.data(), pair.data(), seed.data());
  }

  Bytes sign(const Bytes& message) const {
    Bytes signature(crypto_sign_BYTES);
    crypto_sign_detached(signature.data(), nullptr, message.data(), message.size(), pair.data());
    return signature;
  }

private:
  std::array<uint8_t, crypto_sign_SECRETKEYBYTES> pair;
};

// The node and the vat where a chain's object lives, as its first link says.
std::pair<Bytes, std::string> home(const Bytes& chain) {
  if (chain.size() < 40 || chain.size() < 40u + chain[39]) throw Unexpected("the chain is cut off");
  Bytes node(chain.begin() + 3, chain.begin() + 35);
  return {node, std::string(chain.begin() + 40, chain.begin() + 40 + chain[39])};
}

// Turns a chain into a live capability, proving possession of the holder's key. What is returned
// is the promise of it: calls can be sent through it before the answer is here.
auto restore(Door::Client door, const Bytes& chain, const Secret& secret, kj::WaitScope& scope) {
  auto challenge = door.challengeRequest().send().wait(scope);
  auto node = bytes(challenge.getNode());
  std::string vat = challenge.getVat().cStr();
  // Signed only for the node and the vat that the chain names: a stranger at the socket gets no
  // signature that it could use elsewhere.
  if (std::make_pair(node, vat) != home(chain)) {
    throw Unexpected("this socket belongs to another vat or node than the capability");
  }
  const std::string domain = "distos-restore-v1";
  auto nonce = bytes(challenge.getNonce());
  auto hash = blake3(chain.data(), chain.size());
  Bytes message(domain.begin(), domain.end());
  message.insert(message.end(), nonce.begin(), nonce.end());
  message.insert(message.end(), node.begin(), node.end());
  message.insert(message.end(), vat.begin(), vat.end());
  message.insert(message.end(), hash.begin(), hash.end());

  auto signature = secret.sign(message);
  auto request = door.restoreRequest();
  request.setChain(as_data(chain));
  request.setSignature(as_data(signature));
  return request.send();
}

auto read(Region::Client region, uint64_t offset, uint32_t length) {
  auto request = region.readRequest();
  request.setOffset(offset);
  request.setLen(length);
  return request.send();
}

auto write(Region::Client region, uint64_t offset, const Bytes& content) {
  auto request = region.writeRequest();
  request.setOffset(offset);
  request.setData(as_data(content));
  return request.send();
}

struct Options {
  std::string cap;
  std::string key;
  std::string sockets;
  std::string name = "from-cpp";
  std::string out = "from-cpp.cap";
};

void run(const Options& options) {
  auto file = CapFile::read(options.cap);
  Secret secret(options.key.empty() ? std::filesystem::path(options.cap).replace_extension("key")
                                    : std::filesystem::path(options.key));
  std::string names;
  for (const auto& entry : file.entries) names += (names.empty() ? "" : ", ") + entry.first;
  say(options.cap + ": " + names + " at node " + hex(file.node).substr(0, 16) + "…");

  const auto& chain = file.find("regions");
  auto [node, vat] = home(chain);
  auto sockets = options.sockets.empty() ? file.sockets : options.sockets;
  auto socket = std::filesystem::absolute(sockets) / (vat + ".sock");
  capnp::EzRpcClient connection("unix:" + socket.string());
  auto& scope = connection.getWaitScope();
  auto door = connection.getMain<Door>();

  // Two calls through a capability that is still on its way: one round trip for all three.
  auto restored = restore(door, chain, secret, scope);
  say("connected to " + socket.string());
  auto regions = restored.getCap().castAs<Regions>();
  auto described = regions.describeRequest().send();
  auto create = regions.createRequest();
  create.setName(options.name);
  create.setBytes(PAGES * PAGE);
  auto making = create.send();
  restored.wait(scope);
  auto description = described.wait(scope);
  std::string kind = description.getInfo().getKind().cStr();
  check("restored [regions], which is of kind " + kind + " at vat " + vat,
        kind == "regions" && description.getInfo().getVat() == vat);
  auto made = making.wait(scope);
  auto region = made.getRegion();
  auto certificate = bytes(made.getChain());
  say("made the region " + options.name + " of " + std::to_string(PAGES * PAGE) + " bytes");

  std::vector<Bytes> pages(PAGES, Bytes(PAGE));
  Bytes hashes;
  kj::Vector<capnp::RemotePromise<Region::WriteResults>> writes;
  for (uint32_t at = 0; at < PAGES; at++) {
    randombytes_buf(pages[at].data(), PAGE);
    auto hash = blake3(pages[at].data(), PAGE);
    hashes.insert(hashes.end(), hash.begin(), hash.end());
    writes.add(write(region, uint64_t(at) * PAGE, pages[at]));
  }
  for (auto& done : writes) done.wait(scope);
  say("wrote " + std::to_string(PAGES) + " pages of random bytes, all under way at once");

  auto content = read(region, 0, PAGES * PAGE).wait(scope);
  Bytes read_hashes;
  check("read back as many bytes as were written", content.getData().size() == PAGES * PAGE);
  for (uint32_t at = 0; at < PAGES; at++) {
    auto hash = blake3(content.getData().begin() + at * PAGE, PAGE);
    read_hashes.insert(read_hashes.end(), hash.begin(), hash.end());
  }
  check("the BLAKE3 hash of every page is that of what was written", read_hashes == hashes);
  auto root = blake3(hashes.data(), hashes.size());
  auto told = region.infoRequest().send().wait(scope);
  check("the node's hash of the region is the one computed here: " + hex(root).substr(0, 16) + "…",
        bytes(told.getInfo().getRoot()) == Bytes(root.begin(), root.end()));

  // The same region once more, restored from the certificate that came with it; and a weaker
  // capability made from that, for this session: page 1 only, and only to read.
  auto held = restore(door, certificate, secret, scope).wait(scope).getCap().castAs<Region>();
  auto attenuate = held.attenuateRequest();
  attenuate.setRights(RIGHT_READ);
  attenuate.initCaveats().setRangeStart(PAGE);
  attenuate.getCaveats().setRangeEnd(2 * PAGE);
  auto reader = attenuate.send().wait(scope).getCap().castAs<Region>();
  auto page = read(reader, PAGE, PAGE).wait(scope);
  check("restored the region, attenuated that to reading page 1, and read it",
        bytes(page.getData()) == pages[1]);
  refused("write through it", write(reader, PAGE, {'m', 'i', 'n', 'e'}), scope, "denied",
          {{"missing", "write"}});
  refused("read page 2 through it", read(reader, 2 * PAGE, 100), scope, "denied",
          {{"missing", "read"},
           {"start", std::to_string(2 * PAGE)},
           {"end", std::to_string(2 * PAGE + 100)}});
  auto more = reader.attenuateRequest();
  more.setRights(RIGHT_READ | RIGHT_WRITE);
  refused("attenuate it to more", more.send(), scope, "denied", {{"missing", "write"}});

  CapFile saved{node, socket.parent_path().string(), {{"region", certificate}}};
  if (!(std::ofstream(options.out) << saved.text() << std::flush)) {
    throw Unexpected("cannot write " + options.out);
  }
  say("wrote the certificate to " + options.out);
  say("waiting: run `distos cap revoke " + options.out + " --as " + options.cap + "`, then press Enter");
  std::string line;
  std::getline(std::cin, line);

  refused("read page 1 through the attenuated one", read(reader, PAGE, PAGE), scope, "revoked");
  refused("read through the one it was made from", read(held, 0, PAGE), scope, "revoked");
  refused("restore it again", restore(door, certificate, secret, scope), scope, "revoked");

  // The certificate is revoked, and not what `create` returned, from which the certificate was
  // issued: its maker can still erase the region.
  region.dropRequest().send().wait(scope);
  say("erased the region " + options.name);
}

class Program {
public:
  explicit Program(kj::ProcessContext& context) : context(context) {}

  kj::MainFunc getMain() {
    return kj::MainBuilder(context, "client (a DistOS example)",
                           "Restores the capability \"regions\" of a tenant's capability file CAP, makes "
                           "a region, writes, reads, checks every page by BLAKE3, attenuates to one page "
                           "read-only, is denied what that does not allow, and is refused once somebody "
                           "revokes the region's certificate. Prints what it does line by line. The exit "
                           "code is 0 only if everything was as expected.")
        .addOptionWithArg({"key"}, set(options.key), "FILE",
                          "CAP's secret key [default: CAP with the extension .key]")
        .addOptionWithArg({"sockets"}, set(options.sockets), "DIR",
                          "The node's sockets [default: where CAP says they are]")
        .addOptionWithArg({"name"}, set(options.name), "NAME", "The region to make [default: from-cpp]")
        .addOptionWithArg({"out"}, set(options.out), "FILE",
                          "Where to write the certificate of the region [default: from-cpp.cap]")
        .expectArg("CAP", set(options.cap))
        .callAfterParsing(KJ_BIND_METHOD(*this, all))
        .build();
  }

private:
  kj::Function<kj::MainBuilder::Validity(kj::StringPtr)> set(std::string& option) {
    return [&option](kj::StringPtr value) -> kj::MainBuilder::Validity {
      option = value.cStr();
      return true;
    };
  }

  kj::MainBuilder::Validity all() {
    try {
      if (sodium_init() < 0) throw Unexpected("libsodium does not start");
      run(options);
      say("everything was as expected");
    } catch (const kj::Exception& error) {
      auto fault = Fault::of(error);
      context.exitError(fault ? kj::str("client: ", fault->line()) : kj::str("client: ", error.getDescription()));
    } catch (const std::exception& error) {
      context.exitError(kj::str("client: ", error.what()));
    }
    return true;
  }

  kj::ProcessContext& context;
  Options options;
};

}  // namespace

KJ_MAIN(Program)
