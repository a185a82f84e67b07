package pgtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TLS is a server that lets in only who shows a certificate for its role, over TLS.
type TLS struct {
	Address string // host and port
	Root    string // file with the certificate of who signed the server's and the roles'

	signer authority
	dir    string
	t      testing.TB
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewTLS starts such a server from the binaries on this machine. It ends with the test. Without binaries the test is skipped; in CI it fails.
func NewTLS(t testing.TB) *TLS {
	t.Helper()
	r, err := newRoom(false)
	if err != nil {
		Missing(t, "a PostgreSQL that is installed ("+err.Error()+")")
	}
	s := &TLS{t: t, dir: t.TempDir()}
	t.Cleanup(func() { s.check(r.remove()) })
	s.signer, s.Root = s.authority("root")
	ctx, data := context.Background(), filepath.Join(r.dir, "data")
	s.check(r.initdb(ctx, data))
	cert, key := s.issue(r.dir, "server", s.signer, &x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	root := filepath.Join(r.dir, "root.crt")
	text, err := os.ReadFile(s.Root)
	s.check(err)
	s.check(os.WriteFile(root, text, 0o644))
	for _, file := range []string{cert, key, root} {
		_, err = ordinaryUser(file, false)
		s.check(err)
	}
	s.check(os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte("hostssl all all 127.0.0.1/32 cert\n"), 0o600))
	server, err := newLocal(r, data, "ssl=on", "ssl_cert_file="+cert, "ssl_key_file="+key, "ssl_ca_file="+root)
	s.check(err)
	t.Cleanup(server.kill)
	s.Address = fmt.Sprint("127.0.0.1:", server.port)
	cert, key = s.Certificate("postgres")
	s.check((&Server{DSN: s.DSN("postgres", "sslcert", cert, "sslkey", key)}).await(ctx))
	return s
}

func (s *TLS) check(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// DSN is of a role that trusts whom the root has signed, with further parameters, each a key and a value.
func (s *TLS) DSN(role string, parameters ...string) string {
	query := url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.Root}}
	for i := 0; i < len(parameters); i += 2 {
		query.Set(parameters[i], parameters[i+1])
	}
	return (&url.URL{Scheme: "postgres", User: url.User(role), Host: s.Address, Path: "/postgres", RawQuery: query.Encode()}).String()
}

// Certificate is a role's that the root has signed: the files of it and of its key.
func (s *TLS) Certificate(role string) (cert, key string) {
	s.t.Helper()
	return s.issue(s.t.TempDir(), role, s.signer, &x509.Certificate{})
}

// Stranger is a root that the server does not know, and a role's certificate of it.
func (s *TLS) Stranger(role string) (root, cert, key string) {
	s.t.Helper()
	signer, root := s.authority("stranger")
	cert, key = s.issue(s.t.TempDir(), role, signer, &x509.Certificate{})
	return root, cert, key
}

func (s *TLS) authority(name string) (a authority, file string) {
	s.t.Helper()
	a = authority{&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, s.newKey()}
	return a, s.sign(s.dir, name, a.cert, a.key, a)
}

func (s *TLS) newKey() *ecdsa.PrivateKey {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.check(err)
	return key
}

// issue writes a certificate and its key.
func (s *TLS) issue(dir, name string, by authority, template *x509.Certificate) (certFile, keyFile string) {
	s.t.Helper()
	key := s.newKey()
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	s.check(err)
	keyFile = filepath.Join(dir, name+".key")
	s.check(os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	return s.sign(dir, name, template, key, by), keyFile
}

// sign writes a certificate of a key, for an hour.
func (s *TLS) sign(dir, name string, template *x509.Certificate, key *ecdsa.PrivateKey, by authority) (file string) {
	s.t.Helper()
	var err error
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	s.check(err)
	template.Subject = pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, by.cert, &key.PublicKey, by.key)
	s.check(err)
	file = filepath.Join(dir, name+".crt")
	s.check(os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return file
}
