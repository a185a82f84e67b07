package pgstore

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestP6WhatOneMayNotHaveIsTheOthers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		all  int
		most []int
		want []int
	}{
		{20, []int{0, 0, 0}, []int{7, 7, 6}},
		{30, []int{5, 0}, []int{5, 25}},
		{30, []int{0, 5}, []int{25, 5}},
		{30, []int{5, 9, 0}, []int{5, 9, 16}},
		{31, []int{1, 12, 0, 0}, []int{1, 10, 10, 10}},
		{30, []int{5, 5}, []int{5, 5}},
		{3, []int{5, 0}, []int{2, 1}},
		{3, []int{2, 0}, []int{2, 1}},
		{3, []int{1, 0}, []int{1, 2}},
		{0, []int{1, 0}, []int{0, 0}},
		{5, nil, []int{}},
	} {
		processes := make([]sharer, len(c.most))
		for i, most := range c.most {
			processes[i].most = most
		}
		require.Equal(t, c.want, divide(c.all, processes), "%d among %v", c.all, c.most)
	}
}
