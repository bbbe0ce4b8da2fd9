// Looks up keys in the near tier of this host's node.
//
//	near_get NAME    NAME is the node's near.shared; one key a line on standard input
package main

import (
	"bufio"
	"fmt"
	"os"

	"larder/examples/near/near"
)

func main() {
	tier, err := near.Open(os.Args[1])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	defer tier.Close()
	var buffer []byte
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		value, result, err := tier.Look(lines.Text(), buffer)
		switch {
		case err != nil:
			fmt.Println("ERROR", err)
		case result == near.Found:
			fmt.Printf("FOUND %s\n", value)
		default:
			fmt.Println(result)
		}
		buffer = value
	}
}
