// Makes the folder "paired" beside it, with the real code of Baileys: a device that was paired by the answer that a phone gives, and has talked with somebody and in a group.
//
//	npm install --legacy-peer-deps --ignore-scripts baileys@7.0.0-rc14 && node make.mjs
//
// No server is involved: what pairing receives is signed here, as a phone does, and Baileys verifies it. All keys are made up.
import { createHmac, randomBytes } from 'node:crypto'
import { rmSync } from 'node:fs'
import {
	addTransactionCapability, Curve, configureSuccessfulPairing, getNextPreKeys, initAuthCreds, proto, useMultiFileAuthState
} from 'baileys'
import { makeLibSignalRepository } from './node_modules/baileys/lib/Signal/libsignal.js'

const quiet = Object.assign(Object.create({}), { level: 'silent' })
for (const level of ['trace', 'debug', 'info', 'warn', 'error']) quiet[level] = () => {}
quiet.child = () => quiet

const folder = new URL('./paired', import.meta.url).pathname
rmSync(folder, { recursive: true, force: true })
const { state, saveCreds } = await useMultiFileAuthState(folder)
const { creds } = state

// The phone: it signs the device's identity with the account's key.
const account = Curve.generateKeyPair()
const details = proto.ADVDeviceIdentity.encode({ rawId: 123456, timestamp: 1700000000, keyIndex: 1, accountType: 0, deviceType: 0 }).finish()
const signed = proto.ADVSignedDeviceIdentity.encode({
	details,
	accountSignatureKey: account.public,
	accountSignature: Curve.sign(account.private, Buffer.concat([Buffer.from([6, 0]), details, creds.signedIdentityKey.public]))
}).finish()
const sealed = proto.ADVSignedDeviceIdentityHMAC.encode({
	details: signed, hmac: createHmac('sha256', Buffer.from(creds.advSecretKey, 'base64')).update(signed).digest()
}).finish()
const node = (tag, attrs, content) => ({ tag, attrs, content })
const { creds: paired } = configureSuccessfulPairing(node('iq', { id: '1' }, [node('pair-success', {}, [
	node('device-identity', {}, sealed),
	node('platform', { name: 'android' }),
	node('device', { jid: '491700000001:7@s.whatsapp.net', lid: '100000000000001:7@lid' })
])]), creds)
Object.assign(creds, paired, { registered: true, me: { ...paired.me, name: 'Ada Lovelace' } })

// Pre-keys: twenty are uploaded, five more are made.
const keys = addTransactionCapability(state.keys, quiet, { maxCommitRetries: 1, delayBetweenTriesMs: 10 })
for (const [count, uploaded] of [[20, true], [5, false]]) {
	const { update } = await getNextPreKeys({ creds, keys }, count)
	if (!uploaded) delete update.firstUnuploadedPreKeyId
	Object.assign(creds, update)
}

// Somebody to talk with, in memory.
const kept = {}
const memory = {
	get: async (type, ids) => Object.fromEntries(ids.map(id => [id, kept[type + id]])),
	set: async data => { for (const type in data) for (const id in data[type]) kept[type + id] = data[type][id] }
}
const theirs = { creds: initAuthCreds(), keys: addTransactionCapability(memory, quiet, { maxCommitRetries: 1, delayBetweenTriesMs: 10 }) }
const them = makeLibSignalRepository(theirs, quiet), us = makeLibSignalRepository({ creds, keys }, quiet)
const [ourJid, theirJid, group] = ['100000000000001:7@lid', '100000000000002@lid', '120363000000000001@g.us']
const prefixed = key => Buffer.concat([Buffer.from([5]), key])
const { 1: ourPreKey } = await keys.get('pre-key', ['1']) // it is used up
await them.injectE2ESession({ jid: ourJid, session: {
	registrationId: creds.registrationId, identityKey: prefixed(creds.signedIdentityKey.public),
	signedPreKey: { keyId: 1, publicKey: prefixed(creds.signedPreKey.keyPair.public), signature: creds.signedPreKey.signature },
	preKey: { keyId: 1, publicKey: prefixed(ourPreKey.public) }
} })
const padded = text => Buffer.concat([proto.Message.encode({ conversation: text }).finish(), Buffer.from([1])])
const say = async (from, to, fromJid, toJid, text) => {
	const { type, ciphertext } = await from.encryptMessage({ jid: toJid, data: padded(text) })
	await to.decryptMessage({ jid: fromJid, type, ciphertext })
}
await say(them, us, theirJid, ourJid, 'hello')
await say(us, them, ourJid, theirJid, 'hello to you')
const sent = await us.encryptGroupMessage({ group, meId: ourJid, data: padded('to all') })
const skdm = await them.getSenderKeyDistributionMessage({ group, meId: theirJid })
await us.processSenderKeyDistributionMessage({ authorJid: theirJid, item: { groupId: group, axolotlSenderKeyDistributionMessage: skdm } })
void sent

// What the phone shares, and what is learnt on the way.
await us.lidMapping.storeLIDPNMappings([{ pn: '491700000002@s.whatsapp.net', lid: theirJid }, { pn: '491700000001@s.whatsapp.net', lid: '100000000000001@lid' }])
const keyId = Buffer.from([0, 0, 0xff, 0xff, 0xfe, 1]).toString('base64') // with a slash in it
await keys.set({
	'app-state-sync-key': { [keyId]: proto.Message.AppStateSyncKeyData.fromObject({
		keyData: randomBytes(32), fingerprint: { rawId: 77, currentIndex: 1, deviceIndexes: [0, 1] }, timestamp: 1700000000123
	}) },
	'app-state-sync-version': { regular: { version: 3, hash: randomBytes(128), indexValueMap: { [randomBytes(32).toString('base64')]: { valueMac: randomBytes(32) } } } },
	'sender-key-memory': { [group]: { [theirJid]: true } },
	'device-list': { '100000000000002': ['0', '3'] },
	tctoken: { [theirJid]: { token: randomBytes(12), timestamp: '1700000001', senderTimestamp: 1700000002 } }
})
creds.myAppStateKeyId = keyId
await saveCreds()
us.close()
them.close()
process.exit(0)
