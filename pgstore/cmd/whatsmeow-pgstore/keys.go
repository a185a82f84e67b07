package main

import (
	"context"
	"fmt"
	"os"

	"github.com/wataki/whatsmeow-pgstore/pgstore"
	"github.com/wataki/whatsmeow-pgstore/pgstore/encryption"
)

const keysVariable = "PGSTORE_KEYS"

// keys are the wrapping keys that a flag or the environment names, nil for none.
func (a *app) keys() (encryption.Keys, error) {
	var keys encryption.Keys
	var err error
	switch {
	case a.keysFile != "":
		keys, err = encryption.FromFile(a.keysFile)
	case os.Getenv(keysVariable) != "":
		keys, err = encryption.FromEnvironment(keysVariable)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("wrapping keys: %w", err)
	}
	return keys, nil
}

// encryption is what a database needs whose values are encrypted. Where they are, nothing is written without it; where they are not, only an import begins with it,
// and whoever takes the instances does the rest.
func (a *app) encryption(ctx context.Context, db *database, command string) (pgstore.Encryption, error) {
	keys, err := a.keys()
	if err != nil {
		return nil, err
	}
	encrypted, err := scalar[bool](ctx, db, `SELECT EXISTS (SELECT FROM {schema}.encryption)`)
	switch {
	case err != nil && !missing(err):
		return nil, err
	case encrypted && keys == nil:
		return nil, usage("values of this database are encrypted: say with --keys or %s with what", keysVariable)
	case keys != nil && (encrypted || command == "import"):
		return encryption.New(keys), nil
	}
	return nil, nil
}
