// Checks proofs of the ledger. The hash, the tree and the signature are computed here; see src/ledger/merkle.rs and
// proof.rs for the same in Rust, and the chapter on the protocol for what is hashed.
import { blake3, verify } from "./vendor/noble.js";

const text = new TextEncoder();

const join = (...parts) => {
  const all = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
};

export function hex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function unhex(digits, length) {
  if (typeof digits !== "string" || digits.length !== length * 2 || !/^[0-9a-f]*$/.test(digits)) {
    throw new Error(`${JSON.stringify(digits)} is not ${length} bytes in hexadecimal digits`);
  }
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

function base64(body) {
  if (typeof body !== "string" || !/^[A-Za-z0-9_-]*$/.test(body)) throw new Error("a signed message is not in base64url");
  return Uint8Array.from(atob(body.replaceAll("-", "+").replaceAll("_", "/")), (letter) => letter.charCodeAt(0));
}

/* The canonical encoding: a version byte, then postcard. Numbers are little-endian base 128, signed ones zigzag. */

function varint(value) {
  let rest = BigInt(value);
  if (rest < 0n) throw new Error(`${rest} is below zero`);
  const bytes = [];
  do {
    bytes.push(Number(rest & 127n) | (rest > 127n ? 128 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return Uint8Array.from(bytes);
}

const bytes32 = (digits) => unhex(digits, 32);
const transferId = (digits) => varint(BigInt(`0x${hex(unhex(digits, 16))}`));
const option = (value, encode) => (value === null ? [Uint8Array.of(0)] : [Uint8Array.of(1), encode(value)]);

/** A variant of an enumeration: in JSON its name, or an object with its name and its fields. */
function variant(value, variants) {
  const name = typeof value === "string" ? value : Object.keys(value ?? {})[0];
  const index = variants.findIndex(([known]) => known === name);
  if (index < 0) throw new Error(`${JSON.stringify(name)} is not known`);
  const content = typeof value === "string" ? {} : value[name];
  const fields = variants[index][1].flatMap(([field, encode]) => {
    if (!(field in content)) throw new Error(`${name} has no ${field}`);
    return encode(content[field]);
  });
  return join(varint(index), ...fields);
}

const maybeTime = (value) => option(value, varint);
const maybeKey = (value) => option(value, bytes32);

/* In the order of the wire; see src/ledger/transfer.rs. */
const KINDS = [
  ["single", []],
  ["pending", [["expires", maybeTime]]],
  ["post", [["pending", transferId]]],
  ["void", [["pending", transferId]]],
  ["expire", [["pending", transferId]]],
];
const PURPOSES = [
  ["pay", [["run", bytes32], ["round", varint], ["task", bytes32], ["verdict", bytes32], ["verdicts", bytes32]]],
  ["vest", []],
  ["forfeit", [["finding", bytes32]]],
  ["slash", [["verdict", bytes32], ["finding", bytes32]]],
  ["query", []],
  ["settled", [["request", bytes32]]],
  ["share", [["of", transferId]]],
  ["released", [["request", bytes32]]],
  ["expired", []],
  ["sent", [["order", bytes32]]],
  ["staked", [["order", bytes32]]],
  ["unstaking", [["order", bytes32], ["matures", varint]]],
  ["unstaked", []],
  ["offered", [["order", bytes32], ["taker", maybeKey], ["terms", bytes32]]],
  ["accepted", [["order", bytes32], ["offer", transferId]]],
  ["traded", [["order", bytes32], ["offer", transferId]]],
  ["withdrawn", [["order", bytes32], ["offer", transferId]]],
  ["nothing_due", [["run", bytes32], ["round", varint], ["verdicts", bytes32]]],
];
const ACCOUNTS = ["emission", "treasury", "burn", "escrow", "wallet", "stake"];

function account(name) {
  const [kind, key] = String(name).split(":");
  const index = ACCOUNTS.indexOf(kind);
  if (index < 0 || (key === undefined) !== index < 4) throw new Error(`${JSON.stringify(name)} is no account`);
  return key === undefined ? varint(index) : join(varint(index), bytes32(key));
}

/** What a leaf of the tree is the hash of. */
export function encodeEntry(sequence, at, transfer) {
  const amount = BigInt(transfer.amount);
  return join(
    Uint8Array.of(1),
    varint(sequence),
    varint(at),
    transferId(transfer.id),
    variant(transfer.kind, KINDS),
    account(transfer.debit),
    account(transfer.credit),
    varint(amount * 2n),
    variant(transfer.purpose, PURPOSES),
  );
}

const leaf = (content) => blake3(join(Uint8Array.of(0), content));
const node = (left, right) => blake3(join(Uint8Array.of(1), left, right));

/** RFC 9162, 2.1.3.2: where a path leads to from a leaf, or nothing where it cannot be one. */
export function rootOver(start, index, size, path) {
  if (index < 0n || index >= size || path.length > 64) return null;
  let [first, last, reached] = [index, size - 1n, start];
  for (const beside of path) {
    if (last === 0n) return null;
    if (first % 2n === 1n || first === last) {
      reached = node(beside, reached);
      while (first % 2n === 0n && first !== 0n) [first, last] = [first >> 1n, last >> 1n];
    } else {
      reached = node(reached, beside);
    }
    [first, last] = [first >> 1n, last >> 1n];
  }
  return last === 0n ? reached : null;
}

/** RFC 9162, 2.1.4.2: whether the later tree begins with the earlier one. */
export function grew(earlier, earlierRoot, size, root, path) {
  const same = (one, other) => hex(one) === hex(other);
  if (earlier > size || earlier === 0n || path.length > 64) return false;
  if (earlier === size) return path.length === 0 && same(earlierRoot, root);
  const rest = [...path];
  let [first, last] = [earlier - 1n, size - 1n];
  while (first % 2n === 1n) [first, last] = [first >> 1n, last >> 1n];
  const power = (earlier & (earlier - 1n)) === 0n;
  const begin = power ? earlierRoot : rest.shift();
  if (!begin) return false;
  let [old, made] = [begin, begin];
  for (const beside of rest) {
    if (last === 0n) return false;
    if (first % 2n === 1n || first === last) {
      [old, made] = [node(beside, old), node(beside, made)];
      while (first % 2n === 0n && first !== 0n) [first, last] = [first >> 1n, last >> 1n];
    } else {
      made = node(made, beside);
    }
    [first, last] = [first >> 1n, last >> 1n];
  }
  return last === 0n && same(old, earlierRoot) && same(made, root);
}

const domain = blake3(text.encode("ledger head v1"), { context: text.encode("hydra signed message v1") });

/** Checks a signed head and reads it. */
export function openHead(signed, ledger) {
  if (signed?.signer !== ledger) throw new Error(`the head is signed by ${signed?.signer}, which is not the key of the ledger`);
  const body = base64(signed.body);
  // Strict, as the ledger's other readers are: no keys or signatures that fit in more than one way.
  if (!verify(unhex(signed.signature, 64), join(domain, body), bytes32(signed.signer), { zip215: false })) {
    throw new Error("the signature of the head does not match it");
  }
  return readHead(body);
}

/** Reads a head without asking who signed it. */
export function readHead(body) {
  const bytes = typeof body === "string" ? base64(body) : body;
  let at = 0;
  const take = (length) => {
    if (at + length > bytes.length) throw new Error("the head is cut off");
    at += length;
    return bytes.slice(at - length, at);
  };
  const whole = () => {
    let [value, shift] = [0n, 0n];
    for (;;) {
      const [byte] = take(1);
      value |= BigInt(byte & 127) << shift;
      shift += 7n;
      if (byte < 128) return value;
      if (shift > 63n) throw new Error("a number in the head is too long");
    }
  };
  if (take(1)[0] !== 1) throw new Error("the head is of another version");
  const head = { size: whole(), root: take(32), chain: take(32), at: whole() };
  if (at !== bytes.length) throw new Error("there is something behind the head");
  return head;
}

/** Checks a proof against the ledger's key: what it shows, step by step. Throws where it shows nothing. */
export function check(proof, ledger) {
  if (proof?.proof === "inclusion") {
    const head = openHead(proof.head, ledger);
    const start = leaf(encodeEntry(proof.sequence, proof.at, proof.transfer));
    const path = proof.path.map(bytes32);
    const root = rootOver(start, BigInt(proof.sequence) - 1n, head.size, path);
    if (root === null) throw new Error("the path is not one from this leaf to a root");
    if (hex(root) !== hex(head.root)) {
      throw new Error(`the hashes lead to the root ${hex(root).slice(0, 16)}…, the ledger has signed ${hex(head.root).slice(0, 16)}…`);
    }
    return {
      said: `Transfer ${proof.sequence} is in the ledger.`,
      steps: [
        `leaf: BLAKE3 of the transfer = ${hex(start)}`,
        `${path.length} hashes beside it lead to the root ${hex(root)}`,
        `that root is in the head over ${head.size} transfers, signed by ${ledger} (Ed25519)`,
      ],
    };
  }
  if (proof?.proof === "consistency") {
    const [earlier, head] = [openHead(proof.earlier, ledger), openHead(proof.head, ledger)];
    if (!grew(earlier.size, earlier.root, head.size, head.root, proof.path.map(bytes32))) {
      throw new Error("the hashes do not connect the two heads: the ledger's past was changed");
    }
    return {
      said: `The ledger of ${head.size} transfers begins with the same ${earlier.size}.`,
      steps: [`earlier root ${hex(earlier.root)}`, `later root ${hex(head.root)}`, `both signed by ${ledger} (Ed25519)`],
    };
  }
  throw new Error("this is neither a proof of inclusion nor one of consistency");
}
