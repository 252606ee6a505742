// Copyright: the openclaw.ha contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

package main

import (
	"hash/fnv"
	"slices"
	"strings"

	"github.com/anishathalye/porcupine"
)

// Inputs: a turn with its key, a bare read of a turn that was appended late, and the reading of Redis at the end.
type (
	turn    struct{ token string }
	read    struct{ token string }
	readEnd struct{}
)

// answer is the output of a turn: what the client was told, and what the model call showed. view is nil when unknown.
type answer struct {
	known          bool
	reply, replica string
	view           *[]string
}

// entry of a conversation: a turn, and the answer that its key has from then on, once it is known.
type entry struct {
	token          string
	known          bool
	reply, replica string
}

// conversation is the state: entries in order. It is never changed in place.
type conversation []entry

func (c conversation) tokens() []string {
	tokens := make([]string, len(c))
	for index, entry := range c {
		tokens[index] = entry.token
	}
	return tokens
}

var model = porcupine.Model{
	Init: func() any { return conversation(nil) },
	Step: func(state, input, output any) (bool, any) {
		present := state.(conversation)
		switch input := input.(type) {
		case turn:
			return take(present, input.token, output.(answer))
		case read:
			return slices.Equal(present.tokens(), output.([]string)), present
		}
		return matches(present, output.([]StoredTurn)), present
	},
	Equal: func(one, other any) bool { return slices.Equal(one.(conversation), other.(conversation)) },
	Hash: func(state any) uint64 {
		hash := fnv.New64a()
		for _, entry := range state.(conversation) {
			hash.Write([]byte(entry.token))
			hash.Write([]byte(entry.reply))
		}
		return hash.Sum64()
	},
	DescribeOperation: describe,
	DescribeState:     func(state any) string { return strings.Join(state.(conversation).tokens(), " ") },
}

// take is the atomic read-and-append: a key that is new is appended after exactly what its model call showed; a key
// that is there already gets the answer it has.
func take(present conversation, token string, given answer) (bool, conversation) {
	index := slices.IndexFunc(present, func(entry entry) bool { return entry.token == token })
	if index < 0 {
		index = len(present)
		present = append(slices.Clone(present), entry{token: token})
	}
	if !given.known {
		return true, present
	}
	if given.view != nil && !slices.Equal(present[:index].tokens(), *given.view) {
		return false, nil
	}
	settled := entry{token, true, given.reply, given.replica}
	if present[index].known {
		return present[index] == settled, present
	}
	present = slices.Clone(present)
	present[index] = settled
	return true, present
}

// matches tells whether Redis holds exactly this conversation, with the answers that clients were given.
func matches(present conversation, stored []StoredTurn) bool {
	index := 0
	for _, turn := range stored {
		if len(turn.Tokens) == 0 {
			return false
		}
		for number, token := range turn.Tokens {
			if index == len(present) || present[index].token != token {
				return false
			}
			own := number == len(turn.Tokens)-1 && present[index].known
			if own && turn.Reply != nil && folded(*turn.Reply) != present[index].reply {
				return false
			}
			if own && turn.Replica != nil && present[index].replica != "" && *turn.Replica != present[index].replica {
				return false
			}
			index++
		}
	}
	return index == len(present)
}
