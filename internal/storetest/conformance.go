package storetest

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// testCase is one thing a store has to do. What do writes, check must find: at once, when it is durable, and after a restart.
type testCase struct {
	name  string
	do    func(t *testing.T, s *Subject)
	check func(t *testing.T, s *Subject)
}

var ctx = context.Background()

// Conformance runs the whole suite over a backend.
func Conformance(t *testing.T, b Backend) {
	var cases []testCase
	cases = append(cases, signalCases...)
	cases = append(cases, preKeyCases...)
	cases = append(cases, appStateCases...)
	cases = append(cases, contactCases...)
	cases = append(cases, secretCases...)
	cases = append(cases, eventCases...)
	cases = append(cases, lidCases...)
	cases = append(cases, deviceCases...)
	cases = append(cases, deletionCases...)
	cases = append(cases, transactionCases...)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := New(t, b)
			if c.do != nil {
				c.do(t, s)
			}
			c.check(t, s)
			s.Settle(t)
			c.check(t, s)
			s.Reopen(t)
			c.check(t, s)
		})
	}
}

// none asserts an answer for something that is absent: nil and no error.
func none[T any](t *testing.T, got []T, err error) {
	t.Helper()
	require.NoError(t, err)
	require.Nil(t, got)
}
