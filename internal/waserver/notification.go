package waserver

// Notifications about users: their devices change, they reinstall WhatsApp, their LID becomes known.

import (
	waBinary "go.mau.fi/whatsmeow/binary"
	"go.mau.fi/whatsmeow/types"
)

// clientsLocked are the devices of all accounts that are clients.
func (s *Server) clientsLocked() []*Device {
	var all []*Device
	for jid, user := range s.mu.users {
		if user.account == nil || jid.Server != types.DefaultUserServer {
			continue
		}
		for _, d := range user.devicesLocked() {
			if d.phone == nil {
				all = append(all, d)
			}
		}
	}
	return all
}

func jidsLocked(devices []*Device, server string) []types.JID {
	jids := make([]types.JID, len(devices))
	for i, d := range devices {
		jids[i] = d.in(server)
	}
	return jids
}

// ownDevicesChangedLocked tells an account's clients which devices there are now, and all others that something changed. A
// device that is new itself is not told.
func (a *Account) ownDevicesChangedLocked(added *Device) {
	all := a.devicesLocked()
	var list []waBinary.Node
	for _, d := range all {
		list = append(list, waBinary.Node{Tag: "device", Attrs: waBinary.Attrs{"jid": d.PN()}})
	}
	for _, d := range all {
		if d.phone == nil && d != added {
			d.deliverLocked(&stanza{node: a.server.notificationLocked("account_sync", a.pn, nil, waBinary.Node{
				Tag: "devices", Attrs: waBinary.Attrs{"dhash": participantHash(jidsLocked(all, types.DefaultUserServer))}, Content: list,
			})})
		}
	}
	a.tellDevicesLocked("update", nil)
}

// tellDevicesLocked tells the clients of all other users that the user has a device more or less: once by phone number and
// once by LID, for the client keeps a list by each and looks for it under the name by which it is told.
func (u *Contact) tellDevicesLocked(action string, changed *Device) {
	s, all := u.server, u.devicesLocked()
	tell := func(server string, attrs waBinary.Attrs) {
		change := waBinary.Node{Tag: action, Attrs: waBinary.Attrs{"device_hash": participantHash(jidsLocked(all, server))}}
		if changed != nil {
			change.Content = []waBinary.Node{{Tag: "device", Attrs: waBinary.Attrs{"jid": changed.in(server)}}}
		}
		for _, d := range s.clientsLocked() {
			if d.user != u {
				d.deliverLocked(&stanza{node: s.notificationLocked("devices", u.in(server), attrs, change)})
			}
		}
	}
	if u.hidden {
		tell(types.DefaultUserServer, nil)
		return
	}
	tell(types.DefaultUserServer, waBinary.Attrs{"lid": u.lid})
	tell(types.HiddenUserServer, nil)
}

// AddDevice gives a contact one more simulated device, and tells the clients unless silent.
func (u *Contact) AddDevice(silent bool) *Device {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	d := u.addPhoneLocked()
	if !silent {
		u.tellDevicesLocked("add", d)
	}
	return d
}

// RemoveDevice takes a simulated device away from a contact, and tells the clients unless silent.
func (u *Contact) RemoveDevice(d *Device, silent bool) {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	d.gone = true
	delete(u.devices, d.id)
	if !silent {
		u.tellDevicesLocked("remove", d)
	}
}

// Reinstall installs a simulated device anew: it has a new identity, new keys and no sessions. The clients are told unless
// silent. If it is the phone of an account, its clients are unlinked.
func (u *Contact) Reinstall(d *Device, silent bool) {
	if u.account != nil {
		for _, other := range u.Devices() {
			if other.phone == nil {
				other.Unlink()
			}
		}
	}
	p := d.phone
	p.sending.Lock()
	p.sim.ChangeIdentity()
	clear(p.knows)
	p.sending.Unlock()
	if silent {
		return
	}
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	for _, client := range u.server.clientsLocked() {
		if client.user == u {
			continue
		}
		from, attrs := u.lid, waBinary.Attrs{}
		if u.hidden {
			from = u.pn
		}
		client.deliverLocked(&stanza{node: u.server.notificationLocked("encrypt", from, attrs, waBinary.Node{Tag: "identity"})})
	}
}

// RevealLID ends that others are told the contact's phone number only: from now on its messages, which still go out by
// phone number, name its LID too, and clients move its sessions there.
func (u *Contact) RevealLID() {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	u.hidden = false
}

// UseLID lets the contact's messages go out by LID from now on.
func (u *Contact) UseLID() {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	u.hidden, u.byNumber = false, false
}

// GrantPrivacyToken gives an account a privacy token of the contact.
func (u *Contact) GrantPrivacyToken(to *Account, token []byte) {
	u.server.mu.Lock()
	defer u.server.mu.Unlock()
	u.grantLocked(to.Contact, token, unixText())
}
